//! `test`: a file's own `tests:` in virtual time, through the real partition, without any service.
//!
//! The graph runs as it would in production; only sinks are replaced by ears on the ports a test asks about.

mod input;
mod rows;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{Edge, KeyedBatch, LogId, PartitionKey, SinkInput};
use fieldstream_operators::expr::Expr;
use fieldstream_runtime::clock::Clock;
use fieldstream_runtime::decisions::end_of_input;
use fieldstream_runtime::ledger::Totals;
use fieldstream_runtime::partition::Partition;
use fieldstream_runtime::spec::{Gather, PipelineSpec, PortRef, SinkSpec};
use serde::Serialize;

use crate::build::spec;
use crate::code::Code;
use crate::config::{ExpectConfig, TestConfig};
use crate::load::load;
use crate::nodes::Catalogue;
use crate::plan::Plan;
use crate::problem::{Problem, Problems, did_you_mean};
use crate::substitute::Environment;

/// What came of one test.
#[derive(Clone, Debug, Serialize)]
pub struct TestOutcome {
    /// Its name.
    pub name: String,
    /// True when everything expected came.
    pub passed: bool,
    /// What did not, one entry per expectation.
    pub failures: Vec<String>,
}

/// What came of a file's tests.
#[derive(Clone, Debug, Serialize)]
pub struct FileTests {
    /// The file.
    pub file: String,
    /// Errors that kept the file from being planned; then there are no tests.
    pub problems: Vec<Problem>,
    /// The tests in file order.
    pub tests: Vec<TestOutcome>,
}

impl FileTests {
    /// True when the file could be planned and every test passed.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.problems.is_empty() && self.tests.iter().all(|t| t.passed)
    }
}

impl fmt::Display for FileTests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        for test in &self.tests {
            writeln!(f, "{}: {} ... {}", self.file, test.name, if test.passed { "ok" } else { "FAILED" })?;
            for line in test.failures.iter().flat_map(|failure| failure.lines()) {
                writeln!(f, "    {line}")?;
            }
        }
        if self.problems.is_empty() && self.tests.is_empty() {
            writeln!(f, "{}: no tests", self.file)?;
        }
        Ok(())
    }
}

/// Runs the tests of the file at `path`. What the environment lacks is stood in for.
#[must_use]
pub fn test(path: &Path, environment: &Environment) -> FileTests {
    let environment = Environment { lenient: true, ..environment.clone() };
    let file = path.display().to_string();
    match load(path, &environment).into_result() {
        Ok((plan, _)) => FileTests { file, problems: Vec::new(), tests: run(&plan) },
        Err(problems) => FileTests { file, problems, tests: Vec::new() },
    }
}

/// Runs the tests of a plan.
#[must_use]
pub fn run(plan: &Plan) -> Vec<TestOutcome> {
    let outcome = |test: &TestConfig| {
        let failures = run_one(plan, test).unwrap_or_else(|why| vec![why]);
        TestOutcome { name: test.name.clone(), passed: failures.is_empty(), failures }
    };
    plan.tests.iter().map(outcome).collect()
}

/// Checks the tests of a plan without running them: ports, columns, conditions and values.
#[must_use]
pub fn check(plan: &Plan) -> Problems {
    let mut problems = Vec::new();
    for (t, test) in plan.tests.iter().enumerate() {
        let mut error = |at: String, message: String, hint| {
            problems.push(plan.document.problem(Code::Tests, &format!("/tests/{t}{at}"), &message, hint))
        };
        for (at, message) in input::check(plan, test) {
            let hint = if at.ends_with("/into") { did_you_mean("", plan.sources.iter().map(|s| &*s.name)) } else { None };
            error(at, message, hint);
        }
        for (e, expect) in test.expect.iter().enumerate() {
            let at = format!("/expect/{e}");
            let Some(from) = &expect.from else {
                if expect.ledger.is_none() || expect.rows.is_some() || expect.count.is_some() || expect.condition.is_some() {
                    error(at, "an expectation names a port (`from`), or is `ledger: balanced`".to_owned(), None);
                }
                continue;
            };
            let Some((_, edge)) = port(plan, from) else {
                let names: Vec<String> = ports(plan).into_iter().map(|(name, ..)| name).collect();
                error(format!("{at}/from"), format!("there is no port `{from}`"), did_you_mean(from, names.iter().map(String::as_str)));
                continue;
            };
            if let Some(Err(why)) = expect.condition.as_ref().map(|sql| Expr::predicate(sql, &edge.schema)) {
                error(format!("{at}/where"), why, None);
            }
            let columns: Vec<&str> = edge.schema.fields().iter().map(|f| f.name().as_str()).collect();
            for (r, row) in expect.rows.iter().flatten().enumerate() {
                for column in row.keys().filter(|c| !columns.contains(&c.as_str())) {
                    error(
                        format!("{at}/rows/{r}/{column}"),
                        format!("unknown field `{column}`"),
                        did_you_mean(column, columns.iter().copied()),
                    );
                }
            }
        }
    }
    problems
}

/// Every port of a plan with its name and edge.
fn ports(plan: &Plan) -> Vec<(String, PortRef, Edge)> {
    let mut all = Vec::new();
    for source in 0..plan.sources.len() {
        all.push((PortRef::Source(source), crate::plan::reading_edge()));
        all.push((PortRef::SourceRejected { source }, crate::plan::rejected_edge()));
    }
    for (node, operator) in plan.operators.iter().enumerate() {
        all.extend(operator.outputs.iter().enumerate().map(|(port, o)| (PortRef::Operator { node, port }, o.edge.clone())));
        if operator.kind.rejects {
            all.push((PortRef::Rejected { node }, crate::plan::rejected_edge()));
        }
    }
    all.into_iter().map(|(port, edge)| (plan.port_name(port), port, edge)).collect()
}

fn port(plan: &Plan, name: &str) -> Option<(PortRef, Edge)> {
    ports(plan).into_iter().find(|(n, ..)| n == name).map(|(_, port, edge)| (port, edge))
}

fn run_one(plan: &Plan, test: &TestConfig) -> Result<Vec<String>, String> {
    let mut names: Vec<&str> = test.expect.iter().filter_map(|e| e.from.as_deref()).collect();
    names.sort_unstable();
    names.dedup();
    let mut heard = Vec::new();
    for name in names {
        let (port, edge) = port(plan, name).ok_or_else(|| format!("there is no port `{name}`"))?;
        heard.push((port, SinkInput { name: name.into(), edge }));
    }
    let (rows, _) = play(plan, test, &listening(spec(plan), heard.clone()))?;
    let mut failures = Vec::new();
    for expect in &test.expect {
        if let Some(from) = &expect.from {
            let at = heard.iter().position(|(_, input)| *input.name == **from);
            let batches = at.and_then(|i| rows.get(i)).map(Vec::as_slice).unwrap_or_default();
            failures.extend(judge(from, expect, batches)?);
        }
        if expect.ledger.is_some() {
            // Ears are readers too and would move the first fan-out, where dispositions are counted: the ledger runs without.
            let (_, totals) = play(plan, test, &spec(plan))?;
            if totals.received != totals.accounted() {
                failures.push(format!("ledger: NOT balanced: {totals:?}"));
            }
        }
    }
    Ok(failures)
}

/// `spec` with one more sink that hears `ports`.
fn listening(mut spec: PipelineSpec, ports: Vec<(PortRef, SinkInput)>) -> PipelineSpec {
    spec.graph.sinks.push(SinkSpec { name: "test".into(), inputs: ports, gather: Gather::default(), dead_letter: false });
    spec
}

/// Virtual time is in the rows; the clock that meters work stands still.
#[derive(Debug)]
struct StandingClock;

impl Clock for StandingClock {
    fn now_us(&self) -> i64 {
        0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// What the last sink of `spec` got, by input, and the account.
fn play(plan: &Plan, test: &TestConfig, spec: &PipelineSpec) -> Result<(Vec<Vec<KeyedBatch>>, Totals), String> {
    let key = PartitionKey { pipeline: Arc::clone(&plan.name), log_id: LogId("test".into()), partition: 0 };
    let mut partition = Partition::new(spec, &key, 0, Arc::new(StandingClock))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    let batches = input::batches(plan, test)?;
    let end = batches.last().map_or(0, |b| b.next_offset);
    let mut outputs = Vec::new();
    for batch in batches {
        outputs.extend(partition.turn(batch).map_err(|error| error.to_string())?);
    }
    outputs.push(partition.decide(&end_of_input(end)).map_err(|error| error.to_string())?);
    let inputs = spec.graph.sinks.last().map_or(0, |s| s.inputs.len());
    let mut rows = vec![Vec::new(); inputs];
    for sink_rows in outputs.into_iter().filter_map(|mut o| o.rows.pop()).flatten() {
        if let Some(list) = rows.get_mut(sink_rows.input) {
            list.push(sink_rows.batch);
        }
    }
    Ok((rows, partition.totals().clone()))
}

/// What is not as `expect` says about the rows of a port.
fn judge(from: &str, expect: &ExpectConfig, batches: &[KeyedBatch]) -> Result<Vec<String>, String> {
    let mut actual = Vec::new();
    for batch in batches {
        let kept = match &expect.condition {
            Some(sql) => {
                let (mask, failed) = Expr::predicate(sql, &batch.rows.schema())?.mask(&batch.rows);
                if let Some(failure) = failed.first() {
                    return Err(format!("{from}: `{sql}` cannot be evaluated: {}", failure.message));
                }
                batch.filter(&mask).map_err(|e| e.to_string())?
            }
            None => batch.clone(),
        };
        actual.extend(kept.keys.position.iter().copied().zip(rows::to_json(&kept.rows)));
    }
    // Rules reject one after the other; a person thinks in the order of the input.
    actual.sort_by_key(|(position, _)| *position);
    let actual: Vec<_> = actual.into_iter().map(|(_, row)| row).collect();
    let mut failures = Vec::new();
    let which = expect.condition.as_ref().map_or(String::new(), |sql| format!(" where {sql}"));
    if let Some(count) = expect.count.filter(|c| *c != actual.len()) {
        failures.push(format!("{from}{which}: expected {count} rows, got {}{}", actual.len(), rows::listing(&actual, &[])));
    }
    if let Some(wanted) = &expect.rows
        && let Some(missing) = rows::first_missing(wanted, &actual)
    {
        let columns: Vec<&str> = wanted.iter().flat_map(|row| row.keys().map(String::as_str)).collect();
        let row = wanted.get(missing).cloned().unwrap_or_default();
        let number = missing + 1;
        let row = serde_json::Value::Object(row);
        failures.push(format!("{from}{which}: row {number} of the expected rows did not come: {row}{}", rows::listing(&actual, &columns)));
    }
    Ok(failures)
}

/// Tests of a text, for the crate's own tests.
#[must_use]
pub fn test_text(file: &str, text: &str, environment: &Environment, catalogue: &Catalogue<'_>) -> FileTests {
    let environment = Environment { lenient: true, ..environment.clone() };
    match crate::load::load_text(file, text, &environment, catalogue).into_result() {
        Ok((plan, _)) => FileTests { file: file.to_owned(), problems: Vec::new(), tests: run(&plan) },
        Err(problems) => FileTests { file: file.to_owned(), problems, tests: Vec::new() },
    }
}
