//! SQL scalar expressions over the columns of an edge: planned once, evaluated per batch.
//!
//! Only immutable functions are allowed, so that replay gives the same answer: no clock, no randomness, no other row. Column
//! names are case sensitive; string literals compare with dictionary columns. What a row gives never depends on its batch: when
//! a batch cannot be evaluated, its rows are, and those that cannot are named.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_common::{DFSchema, DataFusionError, SchemaError};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{ExprSchemable, Volatility, expr};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_physical_expr::simplifier::PhysicalExprSimplifier;
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use fieldstream_engine_api::{Emitter, KeyedBatch};

use crate::expr_functions;
use crate::options::did_you_mean;

/// Code of rows for which an expression cannot be evaluated.
pub const CODE: &str = "expression";

/// Longest error text kept.
const MESSAGE_MAX: usize = 240;

/// A planned expression. It must be evaluated on batches of the schema it was planned for.
#[derive(Clone, Debug)]
pub struct Expr {
    sql: Arc<str>,
    physical: Arc<dyn PhysicalExpr>,
    data_type: DataType,
}

/// A row for which an expression cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Row number in the batch.
    pub row: u32,
    /// Why, for a person.
    pub message: String,
}

impl Expr {
    /// Plans `sql` over the columns of `schema`.
    ///
    /// # Errors
    /// One line for a person: what cannot be read, which column or function is not there, what types do not fit.
    pub fn parse(sql: &str, schema: &SchemaRef) -> Result<Self, String> {
        Self::plan(sql, schema, None)
    }

    /// Plans a condition.
    ///
    /// # Errors
    /// As [`Self::parse`], and if the result is not a boolean.
    pub fn predicate(sql: &str, schema: &SchemaRef) -> Result<Self, String> {
        let planned = Self::parse(sql, schema)?;
        if planned.data_type == DataType::Boolean {
            return Ok(planned);
        }
        Err(format!("a condition must be true or false, this gives {}; compare it with something", type_name(&planned.data_type)))
    }

    /// Plans a number: the result is `Float64`, whatever numeric type the expression has.
    ///
    /// # Errors
    /// As [`Self::parse`], and if the result is not a number.
    pub fn number(sql: &str, schema: &SchemaRef) -> Result<Self, String> {
        let planned = Self::parse(sql, schema)?;
        match &planned.data_type {
            DataType::Float64 => Ok(planned),
            other if other.is_numeric() => Self::plan(sql, schema, Some(&DataType::Float64)),
            other => Err(format!("a number is needed, this gives {}", type_name(other))),
        }
    }

    /// Plans `sql` with its result cast to `data_type`.
    ///
    /// # Errors
    /// As [`Self::parse`], and if there is no cast.
    pub fn cast(sql: &str, schema: &SchemaRef, data_type: &DataType) -> Result<Self, String> {
        Self::plan(sql, schema, Some(data_type))
    }

    fn plan(sql: &str, schema: &SchemaRef, target: Option<&DataType>) -> Result<Self, String> {
        let df_schema = Arc::new(DFSchema::try_from(schema.as_ref().clone()).map_err(|e| explain(&e, schema))?);
        let logical = expr_functions::logical(sql, &df_schema).map_err(|e| explain(&e, schema))?;
        check_nodes(&logical)?;
        let plan = || {
            let simplifier = ExprSimplifier::new(SimplifyContext::builder().with_schema(Arc::clone(&df_schema)).build());
            let mut logical = simplifier.coerce(logical, &df_schema)?;
            if let Some(target) = target {
                logical = logical.cast_to(target, df_schema.as_ref())?;
            }
            let logical = simplifier.simplify(logical)?;
            let props = ExecutionProps::new();
            let physical = create_physical_expr(&logical, &df_schema, &props, &PhysicalPlanningContext::default())?;
            let physical = PhysicalExprSimplifier::new(schema).simplify(physical)?;
            let data_type = physical.data_type(schema)?;
            Ok((physical, data_type))
        };
        let (physical, data_type) = plan().map_err(|e| explain(&e, schema))?;
        let planned = Self { sql: sql.into(), physical, data_type };
        planned.try_out(schema)?;
        Ok(planned)
    }

    /// Evaluates on one row of nulls. Some expressions plan and then fail on every row, such as `value > 'abc'`.
    fn try_out(&self, schema: &SchemaRef) -> Result<(), String> {
        let fields: Vec<Field> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        let columns = fields.iter().map(|f| new_null_array(f.data_type(), 1)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row =
            RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).map_err(|e| shorten(&e.to_string()))?;
        self.eval(&row).map(|_| ())
    }

    /// The text it was planned from.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Type of the result.
    #[must_use]
    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// Evaluates on all rows.
    ///
    /// # Errors
    /// If any row cannot be evaluated.
    pub fn eval(&self, batch: &RecordBatch) -> Result<ArrayRef, String> {
        let value = self.physical.evaluate(batch).and_then(|v| v.into_array(batch.num_rows()));
        value.map_err(|e| shorten(&e.find_root().message()))
    }

    /// Evaluates on every row that can be: others are null in the result and named in the list, in row order.
    #[must_use]
    pub fn eval_rows(&self, batch: &RecordBatch) -> (ArrayRef, Vec<Failure>) {
        let mut failures = Vec::new();
        let mut parts = Vec::new();
        self.eval_part(batch, 0, &mut parts, &mut failures);
        let values = match parts.as_slice() {
            [one] => Arc::clone(one),
            parts => concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>())
                .unwrap_or_else(|_| new_null_array(&self.data_type, batch.num_rows())),
        };
        (values, failures)
    }

    /// Halves what fails until single rows are left.
    fn eval_part(&self, batch: &RecordBatch, first: usize, parts: &mut Vec<ArrayRef>, failures: &mut Vec<Failure>) {
        match self.eval(batch) {
            Ok(values) => parts.push(values),
            Err(message) if batch.num_rows() <= 1 => {
                parts.push(new_null_array(&self.data_type, batch.num_rows()));
                if batch.num_rows() == 1 {
                    failures.push(Failure { row: first as u32, message });
                }
            }
            Err(_) => {
                let half = batch.num_rows() / 2;
                self.eval_part(&batch.slice(0, half), first, parts, failures);
                self.eval_part(&batch.slice(half, batch.num_rows() - half), first + half, parts, failures);
            }
        }
    }

    /// Rows for which a condition is true (false and null are not), without nulls, and the rows that cannot be evaluated.
    #[must_use]
    pub fn mask(&self, batch: &RecordBatch) -> (BooleanArray, Vec<Failure>) {
        let (values, failures) = self.eval_rows(batch);
        let Some(values) = values.as_boolean_opt() else {
            // Only a condition planned by `predicate` gets here, and that one is boolean.
            return (BooleanArray::from(vec![false; batch.num_rows()]), failures);
        };
        let bits = match values.nulls() {
            Some(nulls) => values.values() & nulls.inner(),
            None => values.values().clone(),
        };
        (BooleanArray::new(bits, None), failures)
    }
}

/// Rejects the rows named in `failures` with code [`CODE`].
pub fn reject_failures(batch: &KeyedBatch, failures: &[Failure], out: &mut Emitter) {
    for same in failures.chunk_by(|a, b| a.message == b.message) {
        out.reject(batch, same.iter().map(|f| f.row).collect(), CODE, same[0].message.as_str());
    }
}

/// The rows where `mask` (of the batch's length) is true; the batch itself, uncopied, when that is all of them.
#[must_use]
pub fn keep(batch: &KeyedBatch, mask: &BooleanArray) -> KeyedBatch {
    batch.filter(mask).unwrap_or_else(|_| unreachable!("a mask has one bit for each row"))
}

/// Allows what depends on one row's columns alone.
fn check_nodes(logical: &expr::Expr) -> Result<(), String> {
    use expr::Expr as Node;
    let mut refused = None;
    let walked = logical.apply(|node| {
        refused = match node {
            Node::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                Some(format!("`{}` gives another answer each time; use the row's `ts` or `ingest_ts`", call.func.name()))
            }
            Node::AggregateFunction(_) | Node::WindowFunction(_) | Node::GroupingSet(_) => {
                Some("an expression sees one row; aggregates belong in `window`".to_owned())
            }
            Node::Exists(_) | Node::InSubquery(_) | Node::ScalarSubquery(_) | Node::SetComparison(_) | Node::OuterReferenceColumn(..) => {
                Some("an expression sees one row; it has no subqueries".to_owned())
            }
            Node::Placeholder(_) | Node::ScalarVariable(..) => Some("there are no parameters here; use ${var:name}".to_owned()),
            Node::Unnest(_) | Node::Lambda(_) | Node::LambdaVariable(_) | Node::HigherOrderFunction(_) => {
                Some("lists are not supported here".to_owned())
            }
            #[expect(deprecated, reason = "it can still be parsed")]
            Node::Wildcard { .. } => Some("`*` is no column".to_owned()),
            _ => None,
        };
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match (refused, walked) {
        (Some(message), _) => Err(message),
        (None, Err(error)) => Err(shorten(&error.message())),
        (None, Ok(_)) => Ok(()),
    }
}

/// The library's error in our words.
fn explain(error: &DataFusionError, schema: &SchemaRef) -> String {
    let names = || schema.fields().iter().map(|f| f.name().as_str());
    match error.find_root() {
        DataFusionError::SchemaError(cause, _) => match cause.as_ref() {
            SchemaError::FieldNotFound { field, .. } => {
                let hint =
                    did_you_mean(&field.name, names()).unwrap_or_else(|| format!("columns: {}", names().collect::<Vec<_>>().join(", ")));
                format!("there is no column `{}` ({hint})", field.flat_name())
            }
            other => shorten(&other.to_string()),
        },
        DataFusionError::SQL(cause, _) => {
            shorten(&format!("not an expression: {}", cause.to_string().trim_start_matches("sql parser error: ")))
        }
        root => {
            let message = shorten(&root.message());
            expr_functions::aggregate_in(&message).unwrap_or(message)
        }
    }
}

/// One line of bounded length, without backtrace.
fn shorten(message: &str) -> String {
    let message = message.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or_default();
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE_MAX) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

/// The type in a user's words.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "true or false".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Dictionary(_, values) => type_name(values),
        DataType::Timestamp(..) => "a time".to_owned(),
        DataType::Null => "null".to_owned(),
        other if other.is_numeric() => "a number".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "expr_tests.rs"]
mod tests;
