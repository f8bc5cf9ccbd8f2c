//! A plan to a running pipeline's parts: the only file that calls constructors of concrete connectors.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::catalogue::SourceBuild;
use fieldstream_engine_api::{BuildContext, ConnectContext, Receiver, Shared, SinkInput};
use fieldstream_operators::batch::BatchConfig;
use fieldstream_runtime::spec::{
    DecoderFactory, GraphSpec, Input, OperatorSpec, PipelineParts, PipelineSpec, SinkBox, SinkSpec, SourceSpec,
};
use fieldstream_schemas::decode::{DecodeConfig, Decoder, Format};
use serde_json::Value;

use crate::code::Code;
use crate::plan::{Plan, PlannedOperator, PlannedSink, PlannedSource};
use crate::problem::Problems;

/// What a run decides, not the file.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The node's directory for durable state.
    pub data_dir: PathBuf,
    /// True when the run continues an earlier one; false lets outputs of finite runs be truncated. Endless inputs always continue.
    pub resume: bool,
}

/// Builds the connectors of `plan`. Nothing is connected yet.
///
/// # Errors
/// What constructors say about options that their check let pass, at their places.
pub fn build(plan: &Plan, options: &BuildOptions) -> Result<PipelineParts, Problems> {
    let mut problems = Vec::new();
    let shared = Shared::default();
    let input = input(plan, options, &shared, &mut problems);
    let mut sinks = Vec::new();
    for sink in &plan.sinks {
        let inputs: Vec<SinkInput> = sink.inputs.iter().map(|(_, input)| input.clone()).collect();
        match (sink.kind.build)(&sink.options, &inputs, &context(plan, &sink.name, options, &shared)) {
            Ok(built) => sinks.push(SinkBox(built)),
            Err(errors) => problems.extend(plan.document.problems(Code::Options, &sink.options_at, &errors)),
        }
    }
    match input {
        Some(input) if problems.is_empty() => {
            let mut spec = spec(plan);
            if matches!(input, Input::Gateway { .. }) {
                // What is read is what was written: receivers decode before.
                spec.sources.iter_mut().for_each(|source| source.decoder = decoder(&canonical()));
            }
            Ok(PipelineParts { spec, input, sinks })
        }
        _ => Err(problems),
    }
}

/// The plan as the runtime takes it, without connections.
#[must_use]
pub fn spec(plan: &Plan) -> PipelineSpec {
    PipelineSpec {
        name: Arc::clone(&plan.name),
        sources: plan.sources.iter().map(source_spec).collect(),
        graph: GraphSpec {
            operators: plan.operators.iter().map(operator_spec).collect(),
            sinks: plan.sinks.iter().map(sink_spec).collect(),
        },
        time: plan.time,
        checkpoint: plan.checkpoint,
        turn: plan.turn,
        max_active_devices: plan.max_active_devices,
        max_devices_per_source: plan.max_devices_per_source,
    }
}

fn context(plan: &Plan, node: &Arc<str>, options: &BuildOptions, shared: &Shared) -> ConnectContext {
    // Only files end by themselves and can be read again from their beginning.
    let endless = plan.sources.iter().any(|source| source.kind.name != "file");
    let resume = options.resume || endless;
    ConnectContext {
        pipeline: Arc::clone(&plan.name),
        node: Arc::clone(node),
        data_dir: options.data_dir.clone(),
        resume,
        shared: shared.clone(),
    }
}

fn input(plan: &Plan, options: &BuildOptions, shared: &Shared, problems: &mut Problems) -> Option<Input> {
    let mut receivers = Vec::new();
    for (index, source) in plan.sources.iter().enumerate() {
        let context = context(plan, &source.name, options, shared);
        match source.kind.build {
            SourceBuild::Log(build) => match build(&source.options, &context) {
                Ok(built) => return Some(Input::Log { log: built.log, finite: built.finite }),
                Err(errors) => problems.extend(plan.document.problems(Code::Options, &source.options_at, &errors)),
            },
            SourceBuild::Receiver(build) => match build(&source.options, &context) {
                Ok(receiver) => receivers.push((index, receiver)),
                Err(errors) => problems.extend(plan.document.problems(Code::Options, &source.options_at, &errors)),
            },
        }
    }
    let Some(journal) = &plan.journal else { return problems.is_empty().then_some(Input::Receivers(receivers)) };
    let names: Vec<Arc<str>> = plan.sources.iter().map(|source| Arc::clone(&source.name)).collect();
    match (journal.kind.build)(&journal.options, &names, &context(plan, &Arc::from("journal"), options, shared)) {
        Ok(journal) => {
            let decoding =
                |(index, receiver): (usize, Box<dyn Receiver>)| Some((index, receiver, decoder(&plan.sources.get(index)?.decode)()));
            let receivers = receivers.into_iter().filter_map(decoding).collect();
            problems.is_empty().then_some(Input::Gateway { receivers, journal })
        }
        Err(errors) => {
            problems.extend(plan.document.problems(Code::Options, &journal.options_at, &errors));
            None
        }
    }
}

/// Readings as this product writes them.
fn canonical() -> DecodeConfig {
    DecodeConfig { format: Format::Canonical, ..DecodeConfig::default() }
}

/// Makes decoders of a configuration of which the planner has built one.
fn decoder(config: &DecodeConfig) -> DecoderFactory {
    let config = config.clone();
    Arc::new(move || Decoder::new(&config).unwrap_or_else(|_| unreachable!("checked by the planner")))
}

fn source_spec(source: &PlannedSource) -> SourceSpec {
    SourceSpec { name: Arc::clone(&source.name), decoder: decoder(&source.decode) }
}

fn operator_spec(operator: &PlannedOperator) -> OperatorSpec {
    let (build, options, edge) = (operator.kind.build, operator.options.clone(), operator.input.clone());
    OperatorSpec {
        name: Arc::clone(&operator.name),
        kind: operator.kind.name,
        inputs: operator.inputs.clone(),
        factory: Arc::new(move |context: &BuildContext| build(&options, &edge, context)),
    }
}

fn sink_spec(sink: &PlannedSink) -> SinkSpec {
    SinkSpec { name: Arc::clone(&sink.name), inputs: sink.inputs.clone(), gather: sink.gather, dead_letter: sink.dead_letter }
}

/// Rows and time a `batch` operator asks a turn to wait for.
pub(crate) fn batch_limits(options: &Value) -> Option<(usize, Duration)> {
    let config = BatchConfig::parse(options).ok()?;
    Some((config.max_rows, config.max_wait.0))
}
