//! Which request meets which fault.
//!
//! The rules are asked in the order in which they were added; the first that applies decides.
#![forbid(unsafe_code)]

use std::ops::Range;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// fsync or fdatasync. It concerns the whole disk, whatever the rule's range is.
    Flush,
    /// Allocates, punches or zeroes.
    Fallocate,
    /// Asks where data or a hole is; its place is where it begins to look.
    Seek,
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It fails with this errno and has no effect.
    Error(i32),
    /// It is not answered until [`super::Control::release_stuck`].
    Stuck,
    /// It stops after that many bytes, which is reported; 0 reads as the end of the file.
    Short(u32),
}

/// How often a rule applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Times {
    /// To the first request only.
    Once,
    /// To so many requests.
    Count(u64),
    /// Until it is taken away.
    Forever,
}

/// A fault to inject.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The kind of request it is for.
    pub operation: Operation,
    /// A request that touches a byte of this range is hit.
    pub bytes: Range<u64>,
    /// What happens.
    pub effect: Effect,
    /// How often.
    pub times: Times,
    /// So many matching requests are let through first.
    pub after: u64,
}

impl Rule {
    /// `effect` on every `operation`, anywhere and forever.
    #[must_use]
    pub const fn on(operation: Operation, effect: Effect) -> Self {
        Self { operation, bytes: 0..u64::MAX, effect, times: Times::Forever, after: 0 }
    }

    /// Only where a byte of `bytes` is touched.
    #[must_use]
    pub const fn within(mut self, bytes: Range<u64>) -> Self {
        self.bytes = bytes;
        self
    }

    /// Only so often.
    #[must_use]
    pub const fn times(mut self, times: Times) -> Self {
        self.times = times;
        self
    }

    /// Only after so many matching requests.
    #[must_use]
    pub const fn after(mut self, requests: u64) -> Self {
        self.after = requests;
        self
    }

    /// Whether a request is of the kind and at the place that this rule is for.
    fn matches(&self, operation: Operation, bytes: &Range<u64>) -> bool {
        self.operation == operation
            && (operation == Operation::Flush
                || (self.bytes.start < bytes.end && bytes.start < self.bytes.end))
    }
}

/// The rules of a disk.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Armed>);

/// A rule and what is left of it.
#[derive(Debug)]
struct Armed {
    /// As given.
    rule: Rule,
    /// Requests still to be let through.
    skip: u64,
    /// Requests still to be hit.
    left: u64,
}

impl Rules {
    /// Adds a rule after the others.
    pub(super) fn add(&mut self, rule: Rule) {
        let left = match rule.times {
            Times::Once => 1,
            Times::Count(count) => count,
            Times::Forever => u64::MAX,
        };
        self.0.push(Armed { skip: rule.after, left, rule });
    }

    /// Takes all rules away.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What happens to a request; `None` if nothing special does.
    pub(super) fn decide(&mut self, operation: Operation, bytes: &Range<u64>) -> Option<Effect> {
        for armed in &mut self.0 {
            if !armed.rule.matches(operation, bytes) || armed.left == 0 {
                continue;
            }
            if armed.skip > 0 {
                armed.skip -= 1;
                continue;
            }
            if armed.left != u64::MAX {
                armed.left -= 1;
            }
            return Some(armed.rule.effect);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIO: Effect = Effect::Error(5);

    #[test]
    fn a_rule_hits_what_touches_its_range_and_nothing_else() {
        let mut rules = Rules::default();
        rules.add(Rule::on(Operation::Read, EIO).within(4096..8192));
        assert_eq!(rules.decide(Operation::Read, &(0..4096)), None);
        assert_eq!(rules.decide(Operation::Read, &(0..4097)), Some(EIO));
        assert_eq!(rules.decide(Operation::Read, &(8191..9000)), Some(EIO));
        assert_eq!(rules.decide(Operation::Read, &(8192..9000)), None);
        assert_eq!(rules.decide(Operation::Write, &(4096..8192)), None);
    }

    #[test]
    fn a_rule_waits_its_turn_and_wears_out() {
        let mut rules = Rules::default();
        rules.add(Rule::on(Operation::Flush, EIO).times(Times::Count(2)).after(1));
        let hits: Vec<bool> = (0..5).map(|_| rules.decide(Operation::Flush, &(0..0)).is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let mut rules = Rules::default();
        rules.add(Rule::on(Operation::Write, Effect::Stuck).times(Times::Once));
        rules.add(Rule::on(Operation::Write, EIO));
        assert_eq!(rules.decide(Operation::Write, &(0..1)), Some(Effect::Stuck));
        assert_eq!(rules.decide(Operation::Write, &(0..1)), Some(EIO));
        rules.clear();
        assert_eq!(rules.decide(Operation::Write, &(0..1)), None);
    }
}
