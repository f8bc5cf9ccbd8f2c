//! Which publish may be acknowledged when: in receive order, once, and only on the connection it came by.
//!
//! MQTT wants PUBACKs in the order of the PUBLISHes (MQTT-4.6.0-2) and gives packet ids a meaning within one connection only:
//! after a reconnect the broker sends again what it has no acknowledgement for. So every publish is tagged with the
//! generation of its connection, and what belongs to an older one is never acknowledged.

use std::collections::{HashSet, VecDeque};

/// Quality of service of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Qos {
    /// Sent once, never acknowledged.
    AtMost,
    /// PUBLISH, PUBACK.
    AtLeast,
    /// PUBLISH, PUBREC, PUBREL, PUBCOMP.
    Exactly,
}

/// An acknowledgement to send: PUBACK or PUBREC, by quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Packet id.
    pub(crate) packet: u16,
    /// Never [`Qos::AtMost`].
    pub(crate) qos: Qos,
}

/// What to do with a publish that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Pass it on.
    Deliver,
    /// It is durable already (QoS 2, sent again): only answer.
    Answer(Ack),
}

/// Publishes that were passed on and wait to become durable.
#[derive(Debug)]
struct Waiting {
    handle: u64,
    generation: u64,
    acks: Vec<Ack>,
}

/// The book of acknowledgements of one client. Pure: no clock, no socket.
#[derive(Debug, Default)]
pub(crate) struct AckBook {
    generation: u64,
    next_handle: u64,
    waiting: VecDeque<Waiting>,
    /// Packet ids of QoS 2 publishes that are durable but not released by the broker yet.
    durable: HashSet<u16>,
}

impl AckBook {
    /// Generation of the connection now in use.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The connection is gone: nothing received so far can be acknowledged any more.
    pub(crate) fn disconnected(&mut self) {
        self.generation += 1;
    }

    /// A new connection stands. Without a session at the broker packet ids start again.
    pub(crate) fn connected(&mut self, session_present: bool) {
        if !session_present {
            self.durable.clear();
        }
    }

    /// A publish has come in on the connection now in use.
    pub(crate) fn arrived(&mut self, ack: Ack, again: bool) -> Arrival {
        if ack.qos == Qos::Exactly && again && self.durable.contains(&ack.packet) {
            return Arrival::Answer(ack);
        }
        self.durable.remove(&ack.packet);
        Arrival::Deliver
    }

    /// The broker has released a QoS 2 publish: its packet id may be used again.
    pub(crate) fn released(&mut self, packet: u16) {
        self.durable.remove(&packet);
    }

    /// Publishes of one generation were passed on together; returns their handle. Handles ascend.
    pub(crate) fn passed_on(&mut self, generation: u64, acks: Vec<Ack>) -> u64 {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.waiting.push_back(Waiting { handle, generation, acks });
        handle
    }

    /// Everything up to and with `handle` is durable: returns what to acknowledge now, in receive order. Handles that are not
    /// known (any more) acknowledge nothing.
    pub(crate) fn durable(&mut self, handle: u64) -> Vec<Ack> {
        let mut acks = Vec::new();
        while self.waiting.front().is_some_and(|w| w.handle <= handle) {
            let Some(waiting) = self.waiting.pop_front() else { break };
            if waiting.generation == self.generation {
                self.durable.extend(waiting.acks.iter().filter(|a| a.qos == Qos::Exactly).map(|a| a.packet));
                acks.extend(waiting.acks.into_iter().filter(|a| a.qos != Qos::AtMost));
            }
        }
        acks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ack(packet: u16, qos: Qos) -> Ack {
        Ack { packet, qos }
    }

    #[test]
    fn a_stale_handle_acknowledges_nothing() {
        let mut book = AckBook::default();
        let old = book.passed_on(book.generation(), vec![ack(1, Qos::AtLeast)]);
        book.disconnected();
        book.connected(true);
        let new = book.passed_on(book.generation(), vec![ack(1, Qos::AtLeast), ack(2, Qos::Exactly)]);
        assert_eq!(book.durable(old), []);
        assert_eq!(book.durable(new), [ack(1, Qos::AtLeast), ack(2, Qos::Exactly)]);
        assert_eq!(book.durable(new), [], "once only");
    }

    #[test]
    fn a_durable_qos_2_publish_is_answered_and_not_passed_on_again() {
        let mut book = AckBook::default();
        let publish = ack(7, Qos::Exactly);
        assert_eq!(book.arrived(publish, false), Arrival::Deliver);
        let handle = book.passed_on(book.generation(), vec![publish]);
        assert_eq!(book.durable(handle), [publish]);
        book.disconnected();
        book.connected(true);
        assert_eq!(book.arrived(publish, true), Arrival::Answer(publish));
        book.released(7);
        assert_eq!(book.arrived(publish, false), Arrival::Deliver, "the id is used again");
    }

    #[test]
    fn without_a_session_packet_ids_start_again() {
        let mut book = AckBook::default();
        let publish = ack(7, Qos::Exactly);
        let handle = book.passed_on(book.generation(), vec![publish]);
        book.durable(handle);
        book.disconnected();
        book.connected(false);
        assert_eq!(book.arrived(publish, true), Arrival::Deliver);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Receive(u8),
        Acknowledge(u8),
        Reconnect,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![4 => (1u8..5).prop_map(Step::Receive), 4 => any::<u8>().prop_map(Step::Acknowledge), 1 => Just(Step::Reconnect)]
    }

    proptest! {
        /// Whatever the interleaving: acks leave in receive order, at most once, and only on the connection the publish came by.
        #[test]
        fn acks_leave_in_order_and_on_their_own_connection(steps in prop::collection::vec(step(), 0..80)) {
            let mut book = AckBook::default();
            let mut packet = 0u16;
            let mut last_handle = None;
            // Packets received and not acknowledged on this connection, and those passed on before each handle.
            let mut expected: VecDeque<(u64, u16)> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Receive(count) => {
                        let acks: Vec<Ack> = (0..count).map(|_| { packet += 1; ack(packet, Qos::AtLeast) }).collect();
                        let handle = book.passed_on(book.generation(), acks.clone());
                        prop_assert!(last_handle.is_none_or(|last| handle > last));
                        last_handle = Some(handle);
                        expected.extend(acks.iter().map(|a| (handle, a.packet)));
                    }
                    Step::Acknowledge(back) => {
                        let handle = last_handle.unwrap_or(0).saturating_sub(u64::from(back % 4));
                        let mut due = Vec::new();
                        while expected.front().is_some_and(|(h, _)| *h <= handle) {
                            due.extend(expected.pop_front().map(|(_, p)| ack(p, Qos::AtLeast)));
                        }
                        prop_assert_eq!(book.durable(handle), due);
                    }
                    Step::Reconnect => {
                        book.disconnected();
                        book.connected(true);
                        expected.clear();
                    }
                }
            }
        }
    }
}
