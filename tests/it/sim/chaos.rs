//! Who makes things go wrong, and who shares the partitions out.

use std::sync::Arc;
use std::time::Duration;

use super::mutants;
use super::worker::{Running, Workers};
use super::world::World;

/// What may happen to a run besides failing operations. A seed draws its own mixture.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// A process dies.
    Kill,
    /// A process stands still for a while, the group takes it for dead, and it goes on.
    Stop,
    /// A process is told to stop in good order, and the same plan starts again.
    Reload,
    /// A partition moves, and the old owner is told first.
    Move,
    /// A partition moves, and the old owner is told late.
    MoveStale,
    /// A partition moves twice in one moment: two claim it at once.
    MoveTwice,
    /// A wall clock jumps.
    ClockJump,
}

const BLOWS: [Blow; 7] = [Blow::Kill, Blow::Stop, Blow::Reload, Blow::Move, Blow::MoveStale, Blow::MoveTwice, Blow::ClockJump];

/// Strikes until the log is closed and for a while after it.
pub(super) async fn rage(world: &Arc<World>, workers: &Workers) {
    let blows: Vec<Blow> = BLOWS.into_iter().filter(|_| world.rng().chance(600)).collect();
    let most = world.rng().between(3_000, 15_000);
    let mut after = world.rng().between(0, 8);
    while !world.broker().is_closed() || after > 0 {
        world.pause(100, most).await;
        if world.broker().is_closed() {
            after = after.saturating_sub(1);
        }
        let number = world.rng().below(blows.len() as u64);
        if let Some(blow) = blows.get(number as usize) {
            strike(world, workers, *blow).await;
        }
    }
}

fn any(world: &World, workers: &Workers) -> Option<Running> {
    let running: Vec<Running> = workers.lock().unwrap().iter().flatten().cloned().collect();
    let number = world.rng().below(running.len() as u64);
    running.into_iter().nth(number as usize)
}

async fn strike(world: &Arc<World>, workers: &Workers, blow: Blow) {
    let Some(running) = any(world, workers) else { return };
    world.note(format_args!("{blow:?} {}", running.process.name));
    match blow {
        Blow::Kill => {
            mutants::before_kill(world, &running).await;
            running.process.kill();
        }
        Blow::Stop => {
            let wait = world.rng().millis(500, 25_000);
            running.process.stop_for(wait);
            if world.rng().chance(700) {
                give_away_all(world, running.member);
            }
        }
        Blow::Reload => running.stop(),
        Blow::Move | Blow::MoveStale | Blow::MoveTwice => {
            let partitions = u64::from(world.broker().partitions());
            let partition = world.rng().below(partitions) as u32;
            if matches!(blow, Blow::MoveTwice) {
                move_partition(world, partition, true);
            }
            move_partition(world, partition, !matches!(blow, Blow::Move));
        }
        Blow::ClockJump => {
            let by_us = world.rng().between(0, 240_000_000) as i64 - 120_000_000;
            running.process.jump_clock(by_us);
        }
    }
}

fn other_member(world: &World, than: Option<u64>) -> Option<u64> {
    let members: Vec<u64> = world.broker().members().into_iter().filter(|m| Some(*m) != than).collect();
    let number = world.rng().below(members.len() as u64);
    members.get(number as usize).copied()
}

/// Gives `partition` to another member; the old owner hears of it before, or after a while.
fn move_partition(world: &Arc<World>, partition: u32, stale: bool) {
    let from = world.broker().owner(partition);
    let (Some(old), Some(new)) = (from, other_member(world, from)) else { return };
    world.note(format_args!("{partition} moves from {old} to {new}"));
    let mut broker = world.broker();
    broker.set_owner(partition, new);
    if stale {
        broker.tell_assigned(&[partition], new);
    }
    drop(broker);
    let world = Arc::clone(world);
    tokio::spawn(async move {
        if stale {
            world.pause(0, 20_000).await;
            world.broker().tell_revoked(partition, old);
        } else {
            world.broker().tell_revoked(partition, old);
            world.pause(0, 500).await;
            world.broker().tell_assigned(&[partition], new);
        }
    });
}

/// The group takes a member for dead that is not.
fn give_away_all(world: &Arc<World>, member: u64) {
    let partitions = world.broker().partitions();
    for partition in (0..partitions).filter(|p| world.broker().owner(*p) == Some(member)).collect::<Vec<_>>() {
        move_partition(world, partition, true);
    }
}

/// Gives partitions without an owner to members, and some to members that have just come.
pub(super) async fn share_out(world: Arc<World>) {
    while !world.is_calm() {
        let orphans = world.broker().orphans();
        for partition in orphans {
            if let Some(member) = other_member(&world, None) {
                world.note(format_args!("{partition} goes to {member}"));
                world.broker().set_owner(partition, member);
                world.broker().tell_assigned(&[partition], member);
            }
        }
        world.sleep(Duration::from_millis(500)).await;
    }
}
