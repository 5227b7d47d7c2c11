//! What is due when: the plan's times, answers that follow-ups wait for, and how many may run at once.
//!
//! It has no clock and sends nothing. The loop says what time it is and what has ended, and is told what to do next.
//! All times count from the start of the run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::workload::PlannedRequest;

/// What decides that a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Its time. What is running does not matter, up to a bound at which requests are lost and counted.
    Open { in_flight_max: usize },
    /// The end of another one: so many run at once.
    Closed { concurrency: usize },
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Send this one; its latency counts from `intended`.
    Send { request: usize, intended: Duration },
    /// Too many are running: this one is lost.
    Lose { request: usize, intended: Duration },
    /// Nothing before this time, unless a request ends.
    WaitUntil(Duration),
    /// Nothing before a request ends.
    WaitForEnd,
    /// Nothing ever again.
    Done,
}

/// The state of one run.
#[derive(Debug)]
pub(super) struct Schedule<'a> {
    requests: &'a [PlannedRequest],
    pace: Pace,
    /// No request is due later than this.
    end: Duration,
    /// The first of the plan that may not have been sent; those that wait for others are passed over.
    next: usize,
    /// Requests behind the one they wait for.
    followers: BTreeMap<usize, Vec<usize>>,
    /// Follow-ups whose time is known. At most one for each running or pausing conversation.
    ready: BinaryHeap<Reverse<(Duration, usize)>>,
    in_flight: usize,
}

impl<'a> Schedule<'a> {
    pub(super) fn new(requests: &'a [PlannedRequest], pace: Pace, end: Option<Duration>) -> Self {
        let mut followers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, request) in requests.iter().enumerate() {
            if let Some(after) = request.after {
                followers.entry(after.request).or_default().push(index);
            }
        }
        Self {
            requests,
            pace,
            end: end.unwrap_or(Duration::MAX),
            next: 0,
            followers,
            ready: BinaryHeap::new(),
            in_flight: 0,
        }
    }

    /// What to do at `now`. Each answer but the waits is given once and counts as done; a sent request runs until
    /// [`ended`](Self::ended).
    pub(super) fn next(&mut self, now: Duration) -> Next {
        match self.pace {
            Pace::Open { in_flight_max } => self.next_open(now, in_flight_max),
            Pace::Closed { concurrency } => self.next_closed(now, concurrency),
        }
    }

    /// `request` has ended, well or not: what waits for it has a time from here on.
    pub(super) fn ended(&mut self, request: usize, now: Duration) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.release_followers(request, now);
    }

    /// Requests that wait for `request`.
    pub(super) fn has_followers(&self, request: usize) -> bool {
        self.followers.contains_key(&request)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn next_open(&mut self, now: Duration, in_flight_max: usize) -> Next {
        self.skip_followers();
        let from_plan = self.requests.get(self.next).map(|one| (one.at, self.next));
        let from_answers = self.ready.peek().map(|Reverse(first)| *first);
        let first = [from_plan, from_answers].into_iter().flatten().min();
        let first = first.filter(|(due, _)| *due <= self.end);
        let Some((intended, request)) = first else {
            return self.nothing_due();
        };
        if intended > now {
            return Next::WaitUntil(intended);
        }
        self.take(request);
        if self.in_flight < in_flight_max {
            self.in_flight += 1;
            return Next::Send { request, intended };
        }
        self.release_followers(request, intended);
        Next::Lose { request, intended }
    }

    /// Conversations that have begun go before new ones.
    fn next_closed(&mut self, now: Duration, concurrency: usize) -> Next {
        self.skip_followers();
        if now > self.end {
            return self.nothing_due();
        }
        if self.in_flight >= concurrency {
            return Next::WaitForEnd;
        }
        let answered = self.ready.peek().map(|Reverse(first)| *first);
        let request = match answered {
            Some((due, request)) if due <= now => request,
            _ if self.next < self.requests.len() => self.next,
            Some((due, _)) => return Next::WaitUntil(due),
            None => return self.nothing_due(),
        };
        self.take(request);
        self.in_flight += 1;
        // A closed loop asks when it has room, and what it asks is due then.
        Next::Send {
            request,
            intended: now,
        }
    }

    fn nothing_due(&self) -> Next {
        if self.in_flight == 0 {
            Next::Done
        } else {
            Next::WaitForEnd
        }
    }

    fn skip_followers(&mut self) {
        while self
            .requests
            .get(self.next)
            .is_some_and(|one| one.after.is_some())
        {
            self.next += 1;
        }
    }

    fn take(&mut self, request: usize) {
        if request == self.next {
            self.next += 1;
        } else {
            self.ready.pop();
        }
    }

    fn release_followers(&mut self, request: usize, now: Duration) {
        for follower in self.followers.remove(&request).unwrap_or_default() {
            let planned = self.requests.get(follower);
            let Some((planned, after)) = planned.and_then(|one| Some((one, one.after?))) else {
                continue;
            };
            let answered = now.saturating_add(after.pause);
            let due = match self.pace {
                Pace::Open { .. } => answered.max(planned.at),
                Pace::Closed { .. } => answered,
            };
            self.ready.push(Reverse((due, follower)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{After, Segment};

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn request(due_ms: u64, after: Option<(usize, u64)>) -> PlannedRequest {
        PlannedRequest {
            at: at(due_ms),
            prompt: vec![],
            answer: Segment { id: 0, tokens: 1 },
            session: 0,
            tenant: 0,
            after: after.map(|(request, pause)| After {
                request,
                pause: at(pause),
            }),
        }
    }

    fn send(request: usize, intended_ms: u64) -> Next {
        Next::Send {
            request,
            intended: at(intended_ms),
        }
    }

    #[test]
    fn open_requests_go_at_their_times_however_late_the_loop_is() {
        let plan = [request(0, None), request(10, None), request(20, None)];
        let mut schedule = Schedule::new(&plan, Pace::Open { in_flight_max: 9 }, None);
        assert_eq!(schedule.next(at(0)), send(0, 0));
        assert_eq!(schedule.next(at(5)), Next::WaitUntil(at(10)));
        // A stall of the loop does not move what they count from.
        assert_eq!(schedule.next(at(25)), send(1, 10));
        assert_eq!(schedule.next(at(25)), send(2, 20));
        assert_eq!(schedule.next(at(25)), Next::WaitForEnd);
        for request in 0..3 {
            schedule.ended(request, at(30));
        }
        assert_eq!(schedule.next(at(30)), Next::Done);
    }

    #[test]
    fn follow_ups_wait_for_the_answer_and_the_pause() {
        let plan = [
            request(0, None),
            request(100, Some((0, 100))),
            request(150, None),
        ];
        let mut schedule = Schedule::new(&plan, Pace::Open { in_flight_max: 9 }, None);
        assert!(schedule.has_followers(0) && !schedule.has_followers(1));
        assert_eq!(schedule.next(at(0)), send(0, 0));
        assert_eq!(schedule.next(at(120)), Next::WaitUntil(at(150)));
        schedule.ended(0, at(120));
        assert_eq!(schedule.next(at(150)), send(2, 150));
        assert_eq!(schedule.next(at(150)), Next::WaitUntil(at(220)));
        assert_eq!(schedule.next(at(220)), send(1, 220));
    }

    #[test]
    fn beyond_the_bound_requests_are_lost_and_what_waits_for_them_goes_on() {
        let plan = [request(0, None), request(1, None), request(5, Some((1, 4)))];
        let mut schedule = Schedule::new(&plan, Pace::Open { in_flight_max: 1 }, None);
        assert_eq!(schedule.next(at(1)), send(0, 0));
        assert_eq!(
            schedule.next(at(1)),
            Next::Lose {
                request: 1,
                intended: at(1)
            }
        );
        schedule.ended(0, at(2));
        assert_eq!(schedule.next(at(5)), send(2, 5));
        assert_eq!(schedule.in_flight(), 1);
    }

    #[test]
    fn a_closed_loop_keeps_so_many_running_and_goes_on_with_what_has_begun() {
        let plan = [
            request(0, None),
            request(1, Some((0, 10))),
            request(900, None),
            request(901, None),
        ];
        let mut schedule = Schedule::new(&plan, Pace::Closed { concurrency: 1 }, None);
        assert_eq!(schedule.next(at(0)), send(0, 0));
        assert_eq!(schedule.next(at(0)), Next::WaitForEnd);
        schedule.ended(0, at(50));
        assert_eq!(schedule.next(at(50)), send(2, 50));
        schedule.ended(2, at(80));
        assert_eq!(schedule.next(at(80)), send(1, 80));
        schedule.ended(1, at(90));
        assert_eq!(schedule.next(at(90)), send(3, 90));
        schedule.ended(3, at(95));
        assert_eq!(schedule.next(at(95)), Next::Done);
    }

    #[test]
    fn nothing_is_due_after_the_end() {
        let plan = [
            request(0, None),
            request(10, None),
            request(20, Some((0, 5))),
        ];
        let mut open = Schedule::new(&plan, Pace::Open { in_flight_max: 9 }, Some(at(10)));
        assert_eq!(open.next(at(10)), send(0, 0));
        assert_eq!(open.next(at(10)), send(1, 10));
        open.ended(0, at(10));
        open.ended(1, at(11));
        assert_eq!(open.next(at(11)), Next::Done);
        let mut closed = Schedule::new(&plan, Pace::Closed { concurrency: 1 }, Some(at(10)));
        assert_eq!(closed.next(at(0)), send(0, 0));
        closed.ended(0, at(11));
        assert_eq!(closed.next(at(11)), Next::Done);
    }
}
