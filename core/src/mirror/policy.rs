//! What an error leads to.

use super::share::FailureCause;

/// Which side of the job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Side {
    /// Reads.
    Source,
    /// Writes, zeroing, flushes.
    Target,
}

/// QEMU's `on-source-error` and `on-target-error`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ErrorPolicy {
    /// The job fails.
    #[default]
    Report,
    /// The chunk stays dirty and is tried again in a later round. A job that completes by itself gives up after eight; one that
    /// follows a guest never does, and neither becomes ready nor switches over meanwhile. Rounds come further and further apart, up
    /// to a second; no dirty chunk is copied in between, and if the target failed guest writes do not go there themselves.
    Ignore,
    /// No space stops the job, anything else fails it.
    Enospc,
    /// The job stops where it is, `Paused`, or `Standby` if it was ready; guest writes are recorded and go to the source alone.
    /// Nothing goes on until the host calls `Job::resume`; `JobInfo::io_status` says why it stopped.
    Stop,
}

/// What is done about one error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorAction {
    /// The job fails.
    Report,
    /// The chunk stays dirty and is tried again later.
    Ignore,
    /// The job stops until it is resumed.
    Stop,
}

/// How often a request that failed for a passing reason is sent again at once before the policy is asked.
const TRANSIENT_TRIES: u8 = 10;
/// The first wait before such a request is sent again; doubled each time.
const TRANSIENT_BACKOFF_NS: u64 = 100_000;
/// How often a job with policy `ignore` comes back to what failed before it gives up.
pub(super) const IGNORE_ROUNDS: u32 = 8;
/// The first wait between such rounds; doubled each time up to the longest.
const IGNORE_BACKOFF_NS: u64 = 10_000_000;
/// The longest wait between such rounds.
const IGNORE_BACKOFF_MAX_NS: u64 = 1_000_000_000;

/// What `policy` says about an error. A source that shrank cannot be retried into existence, nor can what a failed flush
/// has lost, so these fail the job whatever the policy.
#[must_use]
pub(super) fn decide(policy: ErrorPolicy, errno: i32, cause: FailureCause) -> ErrorAction {
    match (policy, cause) {
        (_, FailureCause::SourceShrank | FailureCause::Flush) => ErrorAction::Report,
        (ErrorPolicy::Report, _) => ErrorAction::Report,
        (ErrorPolicy::Ignore, _) => ErrorAction::Ignore,
        (ErrorPolicy::Stop, _) => ErrorAction::Stop,
        (ErrorPolicy::Enospc, _) if is_no_space(errno) => ErrorAction::Stop,
        (ErrorPolicy::Enospc, _) => ErrorAction::Report,
    }
}

/// Whether the target is full.
#[must_use]
pub(super) const fn is_no_space(errno: i32) -> bool {
    matches!(errno, libc::ENOSPC | libc::EDQUOT)
}

/// When to send a request again that failed for the `tries`-th time with a passing error; `None` = ask the policy.
///
/// The kernel reissues EAGAIN for files and block devices by itself, but not always (QEMU met it on SCSI), and EINTR
/// can come from network file systems.
#[must_use]
pub(crate) fn transient_backoff_ns(errno: i32, tries: u8) -> Option<u64> {
    let passing = matches!(errno, libc::EAGAIN | libc::EINTR);
    (passing && tries < TRANSIENT_TRIES).then(|| TRANSIENT_BACKOFF_NS << tries)
}

/// How long to leave failed chunks alone in `round`.
#[must_use]
pub(super) fn ignore_backoff_ns(round: u32) -> u64 {
    (IGNORE_BACKOFF_NS << round.min(16)).min(IGNORE_BACKOFF_MAX_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_decides_every_error() {
        use ErrorAction as A;
        use ErrorPolicy as P;
        for (policy, on_eio, on_enospc) in [
            (P::Report, A::Report, A::Report),
            (P::Ignore, A::Ignore, A::Ignore),
            (P::Enospc, A::Report, A::Stop),
            (P::Stop, A::Stop, A::Stop),
        ] {
            assert_eq!(decide(policy, libc::EIO, FailureCause::Io), on_eio);
            assert_eq!(decide(policy, libc::ENOSPC, FailureCause::Io), on_enospc);
            assert_eq!(decide(policy, libc::EIO, FailureCause::SourceShrank), A::Report);
        }
    }

    #[test]
    fn passing_errors_are_retried_a_bounded_number_of_times() {
        assert!(transient_backoff_ns(libc::EIO, 0).is_none());
        let waits: Vec<_> = (0..=u8::MAX).map_while(|n| transient_backoff_ns(libc::EAGAIN, n)).collect();
        assert_eq!(waits.len(), usize::from(TRANSIENT_TRIES));
        assert!(waits.iter().sum::<u64>() < 200_000_000);
    }
}
