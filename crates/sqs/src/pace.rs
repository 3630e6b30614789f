//! How many receives are under way, and how much each asks for.

use std::time::Duration;

use tokio::time::Instant;

use crate::publish::BATCH;

/// How long under load room is gathered for a full batch: SQS bills by call.
const GATHER: Duration = Duration::from_millis(20);

/// How often room is looked at meanwhile: whoever asks does not see it grow while waiting for an answer.
const LOOK: Duration = Duration::from_millis(1);

/// One receive when idle, twice as many with each full batch, fewer when batches are not full.
#[derive(Debug)]
pub(crate) struct Pace {
    most: usize,
    /// What a receive asks for where there is room.
    full: usize,
    target: usize,
    /// Whether the last receive brought all that it asked for.
    loaded: bool,
    gathers_until: Option<Instant>,
}

/// What to do with the room that there is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Begin receives that ask for these numbers of messages; none if enough are under way.
    Receive(Vec<usize>),
    /// Wait until then, and see whether there is more room.
    Gather(Instant),
}

impl Pace {
    /// At most `most` receives at once, for a consumer that holds at most `buffered` messages.
    pub(crate) fn new(most: usize, buffered: usize) -> Self {
        Self {
            most: most.min(buffered.div_ceil(BATCH)).max(1),
            full: buffered.min(BATCH),
            target: 1,
            loaded: false,
            gathers_until: None,
        }
    }

    pub(crate) fn plan(&mut self, mut room: usize, under_way: usize, now: Instant) -> Plan {
        let mut receives = Vec::new();
        while under_way + receives.len() < self.target && room > 0 {
            let ask = room.min(BATCH);
            if ask < self.full && self.loaded {
                if under_way + receives.len() > 0 {
                    break;
                }
                let until = *self.gathers_until.get_or_insert(now + GATHER);
                if now < until {
                    return Plan::Gather(until.min(now + LOOK));
                }
            }
            self.gathers_until = None;
            receives.push(ask);
            room -= ask;
        }
        Plan::Receive(receives)
    }

    /// Learns from a receive that asked for `asked` messages and brought `count`.
    pub(crate) fn brought(&mut self, count: usize, asked: usize) {
        self.loaded = count >= asked;
        self.target = if self.loaded {
            (self.target * 2).min(self.most)
        } else if count == 0 {
            1
        } else {
            (self.target - 1).max(1)
        };
    }

    pub(crate) const fn failed(&mut self) {
        self.target = 1;
        self.loaded = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn receives(pace: &mut Pace, room: usize, under_way: usize) -> Vec<usize> {
        match pace.plan(room, under_way, Instant::now()) {
            Plan::Receive(receives) => receives,
            Plan::Gather(_) => panic!("it gathers"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_consumer_has_one_receive_under_way() {
        let mut pace = Pace::new(16, 64);
        assert_eq!(receives(&mut pace, 64, 0), [10]);
        assert!(receives(&mut pace, 54, 1).is_empty());
        pace.brought(0, 10);
        assert_eq!(receives(&mut pace, 64, 0), [10]);
    }

    #[tokio::test(start_paused = true)]
    async fn full_batches_double_the_receives_up_to_the_room() {
        let mut pace = Pace::new(16, 64);
        for expected in [vec![10; 2], vec![10; 4], vec![10; 6]] {
            pace.brought(10, 10);
            let planned = receives(&mut pace, 64, 0);
            assert_eq!(planned, expected);
        }
        pace.brought(3, 10);
        assert_eq!(pace.target, 6);
        pace.brought(0, 10);
        assert_eq!(pace.target, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_room_is_gathered_under_load_but_not_for_long() {
        let mut pace = Pace::new(16, 64);
        assert_eq!(
            receives(&mut pace, 3, 0),
            [3],
            "idle: nothing is waited for"
        );
        pace.brought(10, 10);
        let now = Instant::now();
        let until = now + GATHER;
        assert_eq!(pace.plan(3, 0, now), Plan::Gather(now + LOOK));
        let late = until - LOOK / 2;
        assert_eq!(pace.plan(5, 0, late), Plan::Gather(until));
        assert_eq!(pace.plan(7, 0, until), Plan::Receive(vec![7]));
        assert_eq!(pace.plan(3, 1, until), Plan::Receive(vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn room_for_a_full_batch_is_used_within_a_millisecond() {
        let mut pace = Pace::new(16, 64);
        pace.brought(10, 10);
        let now = Instant::now();
        assert_eq!(pace.plan(1, 0, now), Plan::Gather(now + LOOK));
        let receives = Plan::Receive(vec![10, 10]);
        assert_eq!(pace.plan(24, 0, now + LOOK), receives);
    }

    #[tokio::test(start_paused = true)]
    async fn a_consumer_of_few_gathers_no_more_than_it_can_hold() {
        let mut pace = Pace::new(16, 4);
        pace.brought(4, 4);
        assert_eq!(receives(&mut pace, 4, 0), [4]);
    }

    proptest! {
        #[test]
        fn no_more_is_asked_for_than_there_is_room(
            buffered in 1_usize..300, room in 0_usize..300, under_way in 0_usize..20,
            brought in prop::collection::vec(0_usize..=10, 0..6),
        ) {
            let mut pace = Pace::new(16, buffered);
            for count in brought {
                pace.brought(count, 10);
            }
            if let Plan::Receive(receives) = pace.plan(room, under_way, Instant::now()) {
                prop_assert!(receives.iter().sum::<usize>() <= room);
                prop_assert!(receives.iter().all(|ask| (1..=BATCH).contains(ask)));
                prop_assert!(under_way >= 16 || under_way + receives.len() <= 16);
                prop_assert!(room == 0 || under_way > 0 || !receives.is_empty());
            }
        }
    }
}
