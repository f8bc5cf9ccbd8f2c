//! What an expression may call: the scalar functions of DataFusion, and the reading of SQL text with them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::DataType;
use datafusion_common::config::ConfigOptions;
use datafusion_common::{DFSchema, DataFusionError, Result, TableReference};
use datafusion_expr::planner::{ContextProvider, ExprPlanner};
use datafusion_expr::{AggregateUDF, Expr, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF};
use datafusion_functions::core::planner::CoreFunctionPlanner;
use datafusion_functions::datetime::planner::DatetimeFunctionPlanner;
use datafusion_sql::parser::DFParser;
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};

static FUNCTIONS: LazyLock<Functions> = LazyLock::new(Functions::new);

/// Functions over many rows, which users will try.
const AGGREGATES: &[&str] = &[
    "sum",
    "avg",
    "mean",
    "min",
    "max",
    "count",
    "stddev",
    "var",
    "median",
    "first_value",
    "last_value",
    "lag",
    "lead",
    "row_number",
    "rank",
];

struct Functions {
    options: ConfigOptions,
    by_name: HashMap<String, Arc<ScalarUDF>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
}

impl Functions {
    fn new() -> Self {
        let mut by_name = HashMap::new();
        for function in datafusion_functions::all_default_functions() {
            for alias in function.aliases() {
                by_name.insert(alias.clone(), Arc::clone(&function));
            }
            by_name.insert(function.name().to_owned(), function);
        }
        let planners: Vec<Arc<dyn ExprPlanner>> = vec![Arc::new(CoreFunctionPlanner::default()), Arc::new(DatetimeFunctionPlanner)];
        Self { options: ConfigOptions::default(), by_name, planners }
    }
}

impl ContextProvider for Functions {
    fn get_table_source(&self, _name: TableReference) -> Result<Arc<dyn TableSource>> {
        Err(DataFusionError::Plan("an expression sees one row; it has no tables and no subqueries".to_owned()))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.by_name.get(name).cloned()
    }

    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, _name: &str) -> Option<Arc<AggregateUDF>> {
        None
    }

    fn get_window_meta(&self, _name: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udwf_names(&self) -> Vec<String> {
        // The planner looks for similar names here and does not expect to find none.
        vec!["row_number".to_owned()]
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }
}

/// Reads `sql` as one expression over `schema`; types are not yet made to fit.
///
/// # Errors
/// The library's own.
pub(crate) fn logical(sql: &str, schema: &DFSchema) -> Result<Expr> {
    let parsed = DFParser::parse_sql_into_expr(sql)?;
    if parsed.alias.is_some() {
        return Err(DataFusionError::Plan("a name after the expression means nothing here; remove it".to_owned()));
    }
    let options = ParserOptions::new().with_enable_ident_normalization(false).with_map_string_types_to_utf8view(false);
    SqlToRel::new_with_options(&*FUNCTIONS, options).sql_to_expr(parsed.expr, schema, &mut PlannerContext::new())
}

/// Better words for an unknown function that works over many rows.
pub(crate) fn aggregate_in(message: &str) -> Option<String> {
    let name = message.strip_prefix("Invalid function '")?.split('\'').next()?.to_lowercase();
    AGGREGATES.contains(&name.as_str()).then(|| format!("`{name}` works over many rows and an expression sees one; use `window` for it"))
}
