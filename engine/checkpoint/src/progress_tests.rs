//! Tests of the protocol: tables of facts and actions, and what must hold for any order of facts.

use fieldstream_engine_api::Generation;
use proptest::prelude::*;

use super::*;

const fn at(offset: u64) -> Mark {
    Mark { next_offset: offset, next_decision: 0 }
}

const fn id(number: u64) -> CheckpointId {
    CheckpointId { generation: Generation(1), number }
}

fn run(progress: &mut Progress, steps: Vec<(Fact, Vec<Action>)>) {
    for (number, (fact, expected)) in steps.into_iter().enumerate() {
        assert_eq!(progress.on(fact), expected, "step {number}: {fact:?}");
    }
}

#[test]
fn a_checkpoint_waits_for_the_slowest_sink() {
    let mut progress = Progress::new(at(0), vec![at(0), at(0)], Vec::new(), 2);
    run(
        &mut progress,
        vec![
            (Fact::TurnDone { mark: at(10) }, vec![]),
            (Fact::SnapshotDue, vec![Action::TakeSnapshot]),
            (Fact::SinkDurable { sink: 0, mark: at(10) }, vec![]),
            (Fact::SnapshotTaken { at: at(10) }, vec![Action::StoreSnapshot { at: at(10) }]),
            (Fact::TurnDone { mark: at(20) }, vec![]),
            (Fact::SnapshotStored { at: at(10) }, vec![]),
            (Fact::SinkDurable { sink: 1, mark: at(9) }, vec![]),
            (Fact::SinkDurable { sink: 0, mark: at(20) }, vec![]),
            (Fact::SinkDurable { sink: 1, mark: at(12) }, vec![Action::StoreManifest { at: at(10) }]),
            (Fact::ManifestStored { id: id(0), at: at(10) }, vec![Action::Acknowledge { offset: 10 }]),
        ],
    );
    assert_eq!((progress.newest(), progress.settled()), (Some(at(10)), at(12)));
}

#[test]
fn the_log_is_held_by_the_oldest_checkpoint_kept() {
    let mut progress = Progress::new(at(0), vec![], vec![(id(0), at(5)), (id(1), at(8))], 2);
    assert_eq!(progress.oldest(), Some(at(5)));
    run(
        &mut progress,
        vec![
            (Fact::SnapshotDue, vec![]),
            (Fact::TurnDone { mark: at(10) }, vec![]),
            (Fact::SnapshotDue, vec![Action::TakeSnapshot]),
            (Fact::SnapshotDue, vec![]),
            (Fact::SnapshotTaken { at: at(10) }, vec![Action::StoreSnapshot { at: at(10) }]),
            (Fact::SnapshotStored { at: at(10) }, vec![Action::StoreManifest { at: at(10) }]),
            // The due one that came meanwhile finds nothing new.
            (Fact::ManifestStored { id: id(2), at: at(10) }, vec![Action::Prune { keep: 2 }, Action::Acknowledge { offset: 8 }]),
        ],
    );
}

#[test]
fn a_full_log_is_given_room_by_checkpoints_where_nothing_more_comes() {
    let mut progress = Progress::new(at(0), vec![at(8)], vec![(id(0), at(5)), (id(1), at(8))], 2);
    run(
        &mut progress,
        vec![
            (Fact::SnapshotDue, vec![]),
            (Fact::RoomWanted, vec![Action::TakeSnapshot]),
            (Fact::SnapshotTaken { at: at(8) }, vec![Action::StoreSnapshot { at: at(8) }]),
            (Fact::SnapshotStored { at: at(8) }, vec![Action::StoreManifest { at: at(8) }]),
            (Fact::ManifestStored { id: id(2), at: at(8) }, vec![Action::Prune { keep: 2 }, Action::Acknowledge { offset: 8 }]),
            // No older one holds the log any more.
            (Fact::RoomWanted, vec![]),
        ],
    );
}

#[test]
fn a_renewed_checkpoint_is_made_again_where_it_is() {
    let mut progress = Progress::new(at(8), vec![at(8)], vec![(id(1), at(8))], 2);
    run(&mut progress, vec![(Fact::SnapshotDue, vec![])]);
    progress.renew();
    run(
        &mut progress,
        vec![
            (Fact::SnapshotDue, vec![Action::TakeSnapshot]),
            (Fact::SnapshotTaken { at: at(8) }, vec![Action::StoreSnapshot { at: at(8) }]),
            (Fact::SnapshotStored { at: at(8) }, vec![Action::StoreManifest { at: at(8) }]),
            (Fact::ManifestStored { id: id(2), at: at(8) }, vec![Action::Acknowledge { offset: 8 }]),
            (Fact::SnapshotDue, vec![]),
        ],
    );
}

#[test]
fn a_failed_store_is_tried_again_when_the_next_one_is_due() {
    let mut progress = Progress::new(at(0), vec![at(0)], Vec::new(), 1);
    run(
        &mut progress,
        vec![
            (Fact::TurnDone { mark: at(3) }, vec![]),
            (Fact::SnapshotDue, vec![Action::TakeSnapshot]),
            (Fact::SnapshotTaken { at: at(3) }, vec![Action::StoreSnapshot { at: at(3) }]),
            (Fact::StoreFailed, vec![]),
            (Fact::SnapshotStored { at: at(3) }, vec![]),
            (Fact::SnapshotDue, vec![Action::TakeSnapshot]),
        ],
    );
}

#[test]
fn draining_ends_with_a_checkpoint_at_the_last_turn() {
    let mut progress = Progress::new(at(0), vec![at(0)], Vec::new(), 1);
    run(
        &mut progress,
        vec![
            (Fact::TurnDone { mark: at(3) }, vec![]),
            (Fact::SnapshotDue, vec![Action::TakeSnapshot]),
            (Fact::SnapshotTaken { at: at(3) }, vec![Action::StoreSnapshot { at: at(3) }]),
            (Fact::TurnDone { mark: at(7) }, vec![]),
            (Fact::Drain, vec![]),
            (Fact::SnapshotStored { at: at(3) }, vec![]),
            (Fact::SinkDurable { sink: 0, mark: at(7) }, vec![Action::StoreManifest { at: at(3) }]),
            (Fact::ManifestStored { id: id(0), at: at(3) }, vec![Action::Acknowledge { offset: 3 }, Action::TakeSnapshot]),
            (Fact::SnapshotTaken { at: at(7) }, vec![Action::StoreSnapshot { at: at(7) }]),
            (Fact::SnapshotStored { at: at(7) }, vec![Action::StoreManifest { at: at(7) }]),
            (
                Fact::ManifestStored { id: id(1), at: at(7) },
                vec![Action::Prune { keep: 1 }, Action::Acknowledge { offset: 7 }, Action::Drained],
            ),
            (Fact::Drain, vec![]),
        ],
    );
}

#[test]
fn draining_what_did_nothing_since_its_checkpoint_ends_at_once() {
    let mut progress = Progress::new(at(0), vec![at(9)], vec![(id(0), at(9))], 1);
    run(&mut progress, vec![(Fact::Drain, vec![Action::Drained])]);
    let mut waiting = Progress::new(at(0), vec![at(4)], vec![(id(0), at(4))], 1);
    run(&mut waiting, vec![(Fact::SinkDurable { sink: 0, mark: at(4) }, vec![]), (Fact::Drain, vec![Action::Drained])]);
}

/// Facts a runtime could report next; which one is left to chance.
#[derive(Clone, Debug)]
enum Step {
    Turn(u64, u64),
    Due,
    Sink(usize, u64),
    Store(bool),
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..5u64, 0..2u64).prop_map(|(offsets, decisions)| Step::Turn(offsets, decisions)),
        2 => Just(Step::Due),
        6 => (0..3usize, 1..9u64).prop_map(|(sink, by)| Step::Sink(sink, by)),
        4 => any::<bool>().prop_map(|fails| Step::Store(!fails)),
        1 => Just(Step::Drain),
    ]
}

/// A runtime in small: carries out actions, and remembers what is true.
struct World {
    progress: Progress,
    done: Mark,
    sinks: Vec<Mark>,
    todo: Vec<Action>,
    manifests: Vec<Mark>,
    keep: usize,
    draining: bool,
    drained: bool,
}

impl World {
    fn tell(&mut self, fact: Fact) {
        for action in self.progress.on(fact) {
            match action {
                Action::Acknowledge { offset } => {
                    let from = self.manifests.len().saturating_sub(self.keep);
                    let oldest = self.manifests[from..].first().map(|m| m.next_offset);
                    assert!(oldest.is_some_and(|oldest| offset <= oldest), "acknowledged {offset} beyond {oldest:?}");
                }
                Action::Drained => {
                    assert!(!self.drained && self.draining);
                    assert_eq!(self.manifests.last(), Some(&self.done));
                    assert!(self.sinks.iter().all(|s| reached(*s, self.done)));
                    self.drained = true;
                }
                Action::Prune { keep } => assert_eq!(keep, self.keep),
                other => self.todo.push(other),
            }
        }
    }

    fn work(&mut self, works: bool) {
        if self.todo.is_empty() {
            return;
        }
        let fact = match self.todo.remove(0) {
            Action::TakeSnapshot => Fact::SnapshotTaken { at: self.done },
            _ if !works => Fact::StoreFailed,
            Action::StoreSnapshot { at } => Fact::SnapshotStored { at },
            Action::StoreManifest { at } => {
                assert!(self.sinks.iter().all(|s| reached(*s, at)), "a manifest at {at} beyond a sink");
                assert!(self.manifests.last().is_none_or(|last| *last < at), "checkpoints go forward");
                self.manifests.push(at);
                Fact::ManifestStored { id: id(self.manifests.len() as u64), at }
            }
            other => panic!("{other:?} is no work"),
        };
        self.tell(fact);
    }

    fn sink(&mut self, sink: usize, by: u64) {
        let Some(mark) = self.sinks.get_mut(sink) else { return };
        let next_offset = (mark.next_offset + by).min(self.done.next_offset);
        // A sink commits whole turns: the decisions come with the last offset.
        *mark = if next_offset == self.done.next_offset { self.done } else { Mark { next_offset, ..*mark } };
        let mark = *mark;
        self.tell(Fact::SinkDurable { sink, mark });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_order_of_facts_is_safe_and_draining_ends(steps in prop::collection::vec(step(), 0..120), sinks in 0..4usize, keep in 1..4usize) {
        let progress = Progress::new(at(0), vec![at(0); sinks], Vec::new(), keep);
        let mut world = World {
            progress, done: at(0), sinks: vec![at(0); sinks], todo: Vec::new(), manifests: Vec::new(), keep, draining: false, drained: false,
        };
        for step in steps {
            match step {
                Step::Turn(offsets, decisions) if !world.draining => {
                    world.done.next_offset += offsets;
                    world.done.next_decision += decisions;
                    world.tell(Fact::TurnDone { mark: world.done });
                }
                Step::Due => world.tell(Fact::SnapshotDue),
                Step::Sink(sink, by) => world.sink(sink, by),
                Step::Store(works) => world.work(works),
                Step::Drain => { world.draining = true; world.tell(Fact::Drain) }
                Step::Turn(..) => {}
            }
        }
        world.draining = true;
        world.tell(Fact::Drain);
        for _ in 0..20 {
            (0..sinks).for_each(|sink| world.sink(sink, u64::MAX / 2));
            world.work(true);
        }
        prop_assert!(world.drained, "{:?}", world.progress);
    }
}
