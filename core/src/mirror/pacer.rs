//! Keeps the guest's p99 latency inside a budget by what the copiers may have on their way.
//!
//! The home worker calls [`Pacer::tick`] every 10 to 20 ms with the guest's latencies since the last tick and the bytes
//! that the copiers have on their way; the [`Pace`] that comes back holds for all workers until the next tick. Nothing is
//! assumed of the disks: paces are rungs of a ladder (`ladder`), and the guest's requests tell which is too fast.
//!
//! - The budget is a latency that at most one guest request in a hundred may exceed. Requests over it are counted as
//!   long as the pace stays the same, and the count decides (`evidence`), not the p99 of a few requests.
//! - Too many: down, by more rungs the worse it is, but past a pace that hardly any guest feels one by one (`below`); what is late in
//!   one tick alone decides nothing. The rung that failed is not tried again for a while, twice as long
//!   every time, so that a steady load gets a steady pace instead of a saw tooth.
//! - Few enough: up by one, or by two when there was next to none. What a guest sees is a p99 over seconds, so beyond a pace that
//!   hardly anybody feels that takes few enough in the last seconds, too, under whichever pace (`account`).
//! - A guest that sends nothing (`activity`) has no latency: full speed. When it comes back, the last pace that it had is
//!   where it goes on; that is why it is kept.
//! - The baseline (`baseline`) is what the guest has while the copiers hold still in a probe (`probe`): before the first copy if
//!   the guest is at work then, and every 10 s, because loads change; earlier when the request rate has changed or the
//!   slowest pace still is too fast. What the drive saw long before the job would be no better: a guest's first seconds
//!   are unlike the rest.
//! - A machine that stalls its guest, copies or not, puts requests over the budget that no pace can help. How many those
//!   are is seen while the copiers hold still (`noise`), and so many more are allowed; where they are more than a few, the
//!   copiers look by a glance every second, as no single moment says much about stalls, and go no faster than most guests can
//!   bear, for nobody could tell what else they do to this one; nor slower than hardly any guest feels, without a strong reason. A pace that was far too fast is left at once; if the next look shows that it was
//!   the machine, it comes back, up to that.
//! - A glance also takes a baseline back that was measured in a bad moment.
//! - A budget that the guest misses by itself cannot be kept by any pace. Then a quarter more than the baseline holds.
#![forbid(unsafe_code)]

mod account;
mod activity;
mod baseline;
mod budget;
mod evidence;
mod guest;
mod ladder;
#[cfg(test)]
mod model;
mod noise;
mod probe;
#[cfg(test)]
mod tests;

pub use budget::Budget;
pub use guest::GuestLatency;

use super::pace::Pace;
use super::relief::BudgetLevel;
use account::Account;
use activity::{Activity, Load};
use baseline::Baseline;
use evidence::{Evidence, Finding};
use ladder::Rung;
use noise::Noise;
use probe::{Probe, Purpose, Settling};

/// Time between probes while the guest is at work and the copiers are held back.
const PROBE_EVERY_NS: u64 = 10_000_000_000;
/// The same while the baseline is made of few requests.
const PROBE_POOR_NS: u64 = 3_000_000_000;
/// The least time between probes that something calls for.
const PROBE_SOON_NS: u64 = 1_000_000_000;
/// Time until the first glance, which is early because the baseline may be from a bad moment.
const FIRST_GLANCE_NS: u64 = 400_000_000;
/// Time between glances in noise; while they find nothing new they become rarer.
const GLANCE_EVERY_NS: u64 = 800_000_000;
/// But so many times as long as the last one took at least.
const GLANCE_REST: u64 = 12;
/// What is noise is told by a limit of no less than this, in percent of the baseline: near it requests are late by chance.
const NOISE_PERCENT: u64 = 150;
/// So soon after a fall the next one needs half as long a look.
const FALL_NS: u64 = 200_000_000;
/// In noise a pace that is harmless to most is left only for a larger share than this over what is allowed there.
const HARM_IN_NOISE: f64 = 0.03;
/// With a larger share of the requests over the limit it may not come from the copiers.
const DOUBT_SHARE: f64 = 0.04;
/// How long a rung that failed is not tried again, the first time.
const RETRY_NS: u64 = 500_000_000;
/// How long at most.
const RETRY_MAX_NS: u64 = 16_000_000_000;
/// What happened since the last tick.
#[derive(Clone, Copy, Debug)]
pub struct Tick<'a> {
    /// Now.
    pub now_ns: u64,
    /// The guest's requests that ended since the last tick.
    pub guest: &'a GuestLatency,
    /// Whether the guest has requests on their way now: without any that end it is idle only if it waits for none.
    pub guest_waits: bool,
    /// Bytes that the copiers have on their way now.
    pub copying_bytes: u64,
}

/// A rung that was too fast.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    /// Which.
    rung: Rung,
    /// Not to be tried before this time.
    until_ns: u64,
    /// How long it was not to be tried.
    wait_ns: u64,
}

/// What calls for a probe before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The guest's load changed.
    OtherLoad,
    /// The slowest pace is too fast, so the baseline may be wrong.
    Bottom,
    /// The last probe found another baseline; one probe may be odd.
    Again,
}

/// Decides the pace of one job.
#[derive(Clone, Debug)]
pub struct Pacer {
    /// What is to be kept.
    budget: Budget,
    /// How much of that is in force.
    level: BudgetLevel,
    /// The pace while the guest is at work.
    rung: Rung,
    /// What the guest has without copying.
    baseline: Baseline,
    /// What of that is the machine's doing.
    noise: Noise,
    /// Whether the guest is at work.
    activity: Activity,
    /// Whether it was, at the last tick.
    was_idle: bool,
    /// How much it sends.
    load: Load,
    /// Requests counted under this rung.
    evidence: Evidence,
    /// Those of the last seconds, under whichever.
    account: Account,
    /// The last change of pace, while it has not shown.
    settling: Option<Settling>,
    /// A rung not to be tried.
    ceiling: Option<Ceiling>,
    /// The probe that runs.
    probe: Option<Probe>,
    /// When the last one for the baseline ended.
    probed_ns: Option<u64>,
    /// When the last one of any kind ended.
    looked_ns: u64,
    /// The least time until the next glance, by how long the last one held the copiers.
    glance_soon_ns: u64,
    /// Time until the next glance if nothing calls for it.
    glance_every_ns: u64,
    /// The least time until the next one that something calls for.
    probe_soon_ns: u64,
    /// What calls for one.
    wanted: Option<Wanted>,
    /// When it was slowed down last.
    fell_ns: Option<u64>,
    /// The rung that was left for what may be the machine's doing, until a glance tells.
    doubted: Option<Rung>,
}

impl Pacer {
    /// A pacer that knows nothing of the guest.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            level: BudgetLevel::Chosen,
            rung: Rung::FIRST,
            baseline: Baseline::default(),
            noise: Noise::default(),
            activity: Activity::default(),
            was_idle: true,
            load: Load::default(),
            evidence: Evidence::default(),
            account: Account::default(),
            settling: None,
            ceiling: None,
            probe: None,
            probed_ns: None,
            looked_ns: 0,
            glance_soon_ns: FIRST_GLANCE_NS,
            glance_every_ns: FIRST_GLANCE_NS,
            probe_soon_ns: PROBE_SOON_NS,
            wanted: None,
            fell_ns: None,
            doubted: None,
        }
    }

    /// Another part of the budget is in force from now on. What was found out about paces was by the other.
    pub fn set_level(&mut self, level: BudgetLevel) {
        // From where the copiers are: full speed, or what the tighter budget has left of a pace that most guests bear.
        self.rung = if self.level == BudgetLevel::Lifted { Rung::TOP } else { self.rung.max(Rung::FIRST) };
        self.level = level;
        (self.ceiling, self.doubted, self.fell_ns) = (None, None, None);
        // At full speed nobody holds still for it.
        self.probe = self.probe.filter(|_| level != BudgetLevel::Lifted);
        self.account = Account::default();
        // As after an idle time: nothing that is counted from here on may come from the pace before.
        self.was_idle = true;
    }

    /// How much of the budget is in force.
    #[must_use]
    pub fn level(&self) -> BudgetLevel {
        self.level
    }

    /// What is to be kept now.
    fn in_force(&self) -> Budget {
        self.budget.at(self.level)
    }

    /// Takes in what happened since the last tick, and says how it goes on.
    pub fn tick(&mut self, tick: &Tick<'_>) -> Pace {
        let Tick { now_ns, guest, guest_waits, copying_bytes } = *tick;
        if self.in_force() == Budget::Off {
            return Pace::FULL;
        }
        self.activity.note(now_ns, guest.count(), guest_waits);
        if self.activity.is_idle(now_ns) {
            self.was_idle = true;
            return Pace::FULL;
        }
        if self.was_idle {
            self.was_idle = false;
            self.doubted = None;
            self.load.interrupt();
            self.settle(now_ns);
            self.probe = self.probe.and_then(|probe| probe.resumed(now_ns));
        }
        if let Some(probe) = &mut self.probe {
            if !probe.tick(now_ns, guest, copying_bytes) {
                return Pace::HOLD;
            }
            self.probed(now_ns);
        } else if self.load.changed(now_ns, guest.count()) && self.baseline_counts() {
            self.wanted = Some(Wanted::OtherLoad);
        }
        if let Some(purpose) = self.wants_probe(now_ns) {
            self.probe = Some(Probe::new(now_ns, purpose));
            return Pace::HOLD;
        }
        self.weigh(now_ns, guest, copying_bytes);
        self.rung.pace()
    }

    /// The latency that one request in a hundred may exceed, as it is aimed at; `None` while the baseline is unknown.
    #[must_use]
    pub fn limit_ns(&self) -> Option<u64> {
        self.in_force().limit_ns(&self.baseline)
    }

    /// Whether the copiers go slower for the guest's sake now, so that their rate is not what they are able to. A single probe does
    /// not count; at full speed there are regular ones only for an absolute budget that the guest misses by itself.
    #[must_use]
    pub fn is_holding_back(&self) -> bool {
        let is_probed = self.is_absolute() && self.baseline_counts();
        self.in_force() != Budget::Off && !self.was_idle && (self.rung < Rung::TOP || is_probed)
    }

    /// Whether the budget in force is a latency, and no multiple of the baseline.
    fn is_absolute(&self) -> bool {
        matches!(self.in_force(), Budget::AbsoluteNs(_))
    }

    /// Whether the baseline decides what the limit is.
    fn baseline_counts(&self) -> bool {
        match self.in_force() {
            Budget::Off => false,
            Budget::Baseline(_) => true,
            Budget::AbsoluteNs(ns) => self.limit_ns().is_some_and(|limit_ns| limit_ns > ns),
        }
    }

    /// Takes in what a probe saw.
    fn probed(&mut self, now_ns: u64) {
        let Some(probe) = self.probe.take() else { return };
        let (all, steady) = (probe.all(), probe.steady());
        self.looked_ns = now_ns;
        let is_other = match probe.purpose {
            Purpose::Glance => {
                self.load.skip(probe.held_ns());
                // The longer a glance holds the copiers, the more seldom is one.
                self.glance_soon_ns = GLANCE_EVERY_NS.max(GLANCE_REST * probe.held_ns());
                self.baseline.lower(&steady)
            }
            Purpose::First | Purpose::Probe => self.learn(now_ns, &steady),
        };
        let noise_limit_ns =
            self.limit_ns().max(self.baseline.p99_ns().map(|p99_ns| p99_ns * NOISE_PERCENT / 100));
        if let Some(limit_ns) = noise_limit_ns {
            self.noise.look(&all, probe.measured_ns(), limit_ns);
        }
        self.glance_every_ns = match is_other || self.noise.is_loud() {
            true => self.glance_soon_ns,
            false => (self.glance_every_ns * 4).min(PROBE_EVERY_NS).max(self.glance_soon_ns),
        };
        if is_other {
            self.ceiling = None;
            self.account = Account::default();
        }
        // A pace that was left for what was the machine's doing comes back.
        let doubted = self.doubted.take().filter(|_| self.noise.is_loud()).unwrap_or(Rung::BOTTOM);
        let rung = self.within_noise(self.rung.max(doubted));
        // If the pace is what it was before, what was counted under it still counts; unless it was about to be forgotten.
        let keeps = rung == self.rung && !is_other && self.settling.is_none_or(|settling| settling.keeps());
        self.rung = rung;
        self.settling = Some(Settling::new(now_ns, keeps));
    }

    /// Takes in a baseline; whether it is another one.
    fn learn(&mut self, now_ns: u64, steady: &GuestLatency) -> bool {
        self.probed_ns = Some(now_ns);
        self.load.measured();
        let was_unknown = self.baseline.p99_ns().is_none();
        let wanted = self.wanted.take();
        let other_load = wanted == Some(Wanted::OtherLoad);
        if other_load || self.baseline.is_of_others(steady) {
            self.noise.forget();
            self.doubted = None;
        }
        let is_other = self.baseline.learn(steady, other_load);
        if is_other {
            self.probe_soon_ns = PROBE_SOON_NS;
        } else if matches!(wanted, Some(Wanted::OtherLoad | Wanted::Bottom))
            || self.baseline.p99_ns().is_none()
        {
            // Probes that find nothing new cost copying for nothing, so they become rarer.
            self.probe_soon_ns = (self.probe_soon_ns * 2).min(PROBE_EVERY_NS);
        }
        // In noise, and after the first, glances tell whether it was odd.
        if (is_other || other_load) && !was_unknown && !self.noise.is_loud() {
            self.wanted = Some(Wanted::Again);
        }
        is_other
    }

    /// Whether it is time for a probe, and for which.
    fn wants_probe(&self, now_ns: u64) -> Option<Purpose> {
        if self.probe.is_some() {
            return None;
        }
        let age_ns = self.probed_ns.map_or(u64::MAX, |then| now_ns.saturating_sub(then));
        let is_absolute = self.is_absolute();
        let is_first = self.baseline.p99_ns().is_none() && !is_absolute;
        let is_soon = (is_first || self.wanted.is_some()) && age_ns >= self.probe_soon_ns;
        let every_ns = if self.baseline.is_poor() { PROBE_POOR_NS } else { PROBE_EVERY_NS };
        // At full speed a baseline that the budget is a multiple of is not needed; one that lifts an absolute one is.
        let decides = self.baseline_counts() && (is_absolute || self.rung < Rung::TOP);
        // Noise decides too, and who does not look does not see it end.
        let is_needed = decides || self.noise.is_loud();
        if is_soon || (is_needed && age_ns >= every_ns) {
            let is_new = is_first || self.wanted == Some(Wanted::OtherLoad);
            return Some(if is_new { Purpose::First } else { Purpose::Probe });
        }
        let looked_ns = now_ns.saturating_sub(self.looked_ns);
        let every_ns = if self.doubted.is_some() { self.glance_soon_ns } else { self.glance_every_ns };
        (is_needed && looked_ns >= every_ns).then_some(Purpose::Glance)
    }

    /// Weighs the requests of a tick, and goes up or down.
    fn weigh(&mut self, now_ns: u64, guest: &GuestLatency, copying_bytes: u64) {
        let Some(limit_ns) = self.limit_ns() else { return };
        let over = guest.over(limit_ns);
        self.account.count(now_ns, guest.count(), over);
        if !self.has_settled(now_ns, copying_bytes) {
            return;
        }
        self.evidence.count(guest.count(), over);
        let share = self.noise.allowed_share(limit_ns);
        let finding = match self.noise.is_loud() {
            true => self.evidence.finding_in_noise(now_ns, share, self.noise.requests()),
            false => self.evidence.finding(now_ns, share),
        };
        match finding {
            Finding::Unclear => {}
            Finding::TooMuch(_) if self.may_be_the_last_fall(now_ns) => {}
            Finding::TooMuch(share) => self.slow_down(now_ns, share),
            Finding::Room => self.speed_up(now_ns, self.account.has_room(share)),
        }
    }

    /// Whether what is late now may still come from what the copiers fell for: a stall that lasts some ticks must not take them
    /// down once for every two of these.
    fn may_be_the_last_fall(&self, now_ns: u64) -> bool {
        let fell_lately = self.fell_ns.is_some_and(|then| now_ns.saturating_sub(then) < FALL_NS);
        fell_lately && self.evidence.age_ns(now_ns) < FALL_NS / 2
    }

    /// The rung failed: so large a share of the requests was over the limit.
    fn slow_down(&mut self, now_ns: u64, share: f64) {
        let is_bottom = self.rung == Rung::BOTTOM;
        if is_bottom {
            self.wanted = self.wanted.or(Some(Wanted::Bottom));
        }
        if is_bottom || (self.noise.is_loud() && self.rung <= Rung::HARMLESS && share < HARM_IN_NOISE) {
            self.evidence = Evidence::since(now_ns);
            return;
        }
        // It may be the machine, and not us. A glance tells.
        if share > DOUBT_SHARE && !self.noise.is_loud() {
            self.doubted = self.doubted.max(Some(self.rung));
        }
        self.fell_ns = Some(now_ns);
        let failed = self.rung;
        // In noise a rung may have failed by chance.
        let again = self.ceiling.filter(|c| c.rung == failed && !self.noise.is_loud());
        let wait_ns = again.map_or(RETRY_NS, |c| (c.wait_ns * 2).min(RETRY_MAX_NS));
        self.ceiling = Some(Ceiling { rung: failed, until_ns: now_ns.saturating_add(wait_ns), wait_ns });
        self.change(now_ns, self.below(failed, share));
    }

    /// Where it goes on when so large a share was over the limit: lower the worse it was, but past a pace that is harmless to most
    /// only step by step. There a fall takes much of the copy and saves the guest little, and what called for it may have been
    /// a burst of the guest's own.
    fn below(&self, failed: Rung, share: f64) -> Rung {
        let rungs = match share {
            _ if self.noise.is_loud() => 1,
            s if s > 0.3 => 6,
            s if s > 0.1 => 4,
            s if s > DOUBT_SHARE => 2,
            _ => 1,
        };
        failed.down(rungs).max(Rung::HARMLESS).min(failed.down(1))
    }

    /// There is room: a faster rung, unless it failed lately. One that most guests can feel only if there was room for seconds.
    fn speed_up(&mut self, now_ns: u64, had_room: bool) {
        self.doubted = None;
        if self.ceiling.is_some_and(|c| self.rung >= c.rung) {
            self.ceiling = None;
        }
        let next = self.rung.up(if self.evidence.is_far_below() { 2 } else { 1 });
        let next = match self.ceiling {
            Some(c) if now_ns < c.until_ns => next.min(c.rung.down(1)),
            Some(c) => next.min(c.rung),
            None => next,
        };
        let next = if had_room { next } else { next.min(Rung::HARMLESS) };
        let next = self.within_noise(next);
        if next > self.rung {
            self.change(now_ns, next);
        }
    }

    /// This rung, or the fastest in noise.
    fn within_noise(&self, rung: Rung) -> Rung {
        if self.noise.is_loud() { rung.min(Rung::IN_NOISE) } else { rung }
    }

    /// Goes to another rung.
    fn change(&mut self, now_ns: u64, rung: Rung) {
        self.rung = rung;
        self.settle(now_ns);
    }

    /// Begins to wait until the pace shows.
    fn settle(&mut self, now_ns: u64) {
        self.settling = Some(Settling::new(now_ns, false));
    }

    /// Whether what the guest's requests took comes from this pace.
    fn has_settled(&mut self, now_ns: u64, copying_bytes: u64) -> bool {
        let Some(settling) = &mut self.settling else { return true };
        if settling.is_over(now_ns, copying_bytes, self.rung.pace()) {
            if !settling.keeps() {
                self.evidence = Evidence::since(now_ns);
            }
            self.settling = None;
        }
        false
    }
}
