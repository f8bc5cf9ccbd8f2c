//! Simulated parts that break a law on purpose: the oracle must catch each of them.

use std::sync::Arc;

use fieldstream_checkpoint::CheckpointStore;

use super::oracle;
use super::worker::Running;
use super::world::World;
use super::{Outcome, run_seed};

/// A law that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// A sink says that rows are durable and commits them later.
    AnswersBeforeCommit,
    /// A sink's rows and its mark are two steps.
    RowsThenMark,
    /// A sink reads its mark, then fences.
    ReadsMarkThenFences,
    /// A sink lets stale owners write.
    FencesNobody,
    /// A sink whose commit had no answer commits again without looking at its mark.
    NeverLooksAtMark,
    /// A sink tells no mark, so that rows below it are not skipped.
    ForgetsMark,
    /// A checkpoint becomes true at a position that the sinks' marks have not reached.
    CheckpointBeforeMarks,
    /// The log forgets what was read, before a checkpoint is true.
    TrimsBeforeCheckpoint,
    /// Creating an object that exists overwrites it.
    StoreOverwrites,
    /// A decision is durable only after its effects may have left.
    DecisionsLater,
    /// A new owner does not see the decisions of the old one.
    ReplaysWithoutDecisions,
}

/// What mutants do to a process that is about to be killed.
pub(super) async fn before_kill(world: &Arc<World>, running: &Running) {
    if world.is(Mutant::CheckpointBeforeMarks) {
        let partitions = world.broker().partitions();
        for partition in 0..partitions {
            if world.broker().owner(partition) == Some(running.member) {
                save_too_early(world, partition).await;
            }
        }
    }
}

/// Makes a checkpoint true at the log's end, wherever the marks are.
async fn save_too_early(world: &Arc<World>, partition: u32) {
    let generation = world.tables[0].lock().unwrap().owners.get(&partition).copied();
    let to = world.broker().records(partition).len() as u64;
    let Ok(decisions) = oracle::decisions(world, partition).await else { return };
    // A poison row that nobody has met yet: the checkpoint cannot be made.
    let evaluated = oracle::evaluate(world, partition, to, decisions);
    let (Some(generation), Ok((mut evaluated, _))) = (generation, evaluated) else { return };
    let objects: Arc<dyn object_store::ObjectStore> = world.objects.clone();
    let store = CheckpointStore::open_remote(objects).await.unwrap().partition(&oracle::key(world, partition));
    let number = 1_000_000 + to;
    // Saved once already: nothing came since.
    let _ = store.save(generation, number, &evaluated.snapshot("").unwrap()).await;
}

/// The first of `seeds` seeds that catches `mutant`, and what it says.
fn caught_within(mutant: Mutant, seeds: u64) -> (u64, String) {
    for seed in 0..seeds {
        if let Outcome { verdict: Err(what), .. } = run_seed(seed, Some(mutant), false) {
            eprintln!("{mutant:?} is caught by seed {seed}: {what}");
            return (seed, what);
        }
    }
    panic!("{mutant:?} is not caught within {seeds} seeds");
}

#[test]
fn a_sink_that_answers_before_it_commits_is_caught() {
    caught_within(Mutant::AnswersBeforeCommit, 20);
}

#[test]
fn rows_and_mark_in_two_steps_are_caught() {
    caught_within(Mutant::RowsThenMark, 100);
}

#[test]
fn a_mark_read_before_fencing_is_caught() {
    caught_within(Mutant::ReadsMarkThenFences, 200);
}

#[test]
fn a_sink_that_fences_nobody_is_caught() {
    caught_within(Mutant::FencesNobody, 100);
}

#[test]
fn a_sink_that_commits_again_without_looking_is_caught() {
    caught_within(Mutant::NeverLooksAtMark, 20);
}

#[test]
fn rows_below_the_mark_that_are_not_skipped_are_caught() {
    caught_within(Mutant::ForgetsMark, 20);
}

#[test]
fn a_checkpoint_before_the_marks_is_caught() {
    caught_within(Mutant::CheckpointBeforeMarks, 100);
}

#[test]
fn a_log_trimmed_before_the_checkpoint_is_caught() {
    caught_within(Mutant::TrimsBeforeCheckpoint, 20);
}

#[test]
fn a_store_that_overwrites_is_caught() {
    caught_within(Mutant::StoreOverwrites, 200);
}

#[test]
fn decisions_that_are_not_durable_before_their_effects_are_caught() {
    caught_within(Mutant::DecisionsLater, 100);
}

#[test]
fn a_replay_without_decisions_is_caught() {
    caught_within(Mutant::ReplaysWithoutDecisions, 50);
}
