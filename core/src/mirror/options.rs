//! What a host may choose for a job; names follow QEMU's where QEMU has the thing.

use super::extents::ExtentMap;
use super::policy::ErrorPolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{Granularity, MIB};

/// What the first pass copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SyncMode {
    /// Everything.
    #[default]
    Full,
    /// What the topmost layer holds: what SEEK_DATA finds, or what a list of extents says.
    Top,
    /// Nothing; only later writes are followed.
    None,
}

/// The choices for one job; the default copies everything at full speed and reports the first error.
#[derive(Clone, Debug, Default)]
pub struct MirrorOptions {
    /// What the first pass copies.
    pub sync: SyncMode,
    /// Bytes a dirty bit stands for; by default the target's cluster size clamped to 4 KiB..64 KiB, else 64 KiB.
    pub granularity: Option<Granularity>,
    /// Bytes in flight per worker, rounded up to the granularity; 0 = 16 MiB.
    pub buf_size_bytes: u64,
    /// Bytes per second at most, over all workers; 0 = no limit.
    pub speed_bytes_per_s: u64,
    /// Look for zeroes in the data and carry them over as holes.
    pub zero_detect: bool,
    /// The target is known to read as zeroes, so holes need no request. Of no effect with [`SyncMode::Top`]: there the
    /// target's backing file, which may come later, decides what shows where nothing was written.
    pub target_is_zero: bool,
    /// Zeroes leave the target's space allocated; by default they give it back (QEMU's `unmap`).
    pub keep_allocated: bool,
    /// The cluster size of a target that has a backing file: the first touch of a cluster copies all of it.
    pub target_cluster_bytes: Option<u64>,
    /// What to do when a read fails.
    pub on_source_error: ErrorPolicy,
    /// What to do when a write, a zeroing or a flush fails.
    pub on_target_error: ErrorPolicy,
    /// What the topmost layer holds, instead of SEEK_DATA; with [`SyncMode::Top`] only.
    pub extents: Option<ExtentMap>,
}

impl MirrorOptions {
    /// The largest buffer a job may ask for: offsets in a window are 32 bits.
    pub const MAX_BUF_SIZE_BYTES: u64 = 2048 * MIB;
    /// The largest cluster: what QEMU's qcow2 allows.
    pub const MAX_CLUSTER_BYTES: u64 = 2 * MIB;

    /// Checks what can be checked without the devices.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] with the option and its bounds.
    pub fn validate(&self) -> Result<()> {
        let bad =
            |what: &'static str, why: String| Err(Error::new(ErrorKind::InvalidArgument, what).because(why));
        if self.buf_size_bytes > Self::MAX_BUF_SIZE_BYTES {
            return bad(
                "set buf-size",
                format!("{} bytes is more than 2 GiB per worker", self.buf_size_bytes),
            );
        }
        if let Some(cluster) = self.target_cluster_bytes
            && (!cluster.is_power_of_two() || !(512..=Self::MAX_CLUSTER_BYTES).contains(&cluster))
        {
            let why = format!("{cluster} bytes is not a power of two from 512 bytes to 2 MiB");
            return bad("set target-cluster-size", why);
        }
        if self.extents.is_some() && self.sync != SyncMode::Top {
            return bad(
                "use an extent list",
                "it says what the topmost layer holds, so it needs sync mode top".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_choices_are_refused_by_name() {
        let with = |f: fn(&mut MirrorOptions)| {
            let mut o = MirrorOptions::default();
            f(&mut o);
            o.validate().map_err(|e| e.to_string())
        };
        assert!(with(|_| ()).is_ok());
        assert!(with(|o| o.buf_size_bytes = u64::MAX).unwrap_err().contains("buf-size"));
        assert!(with(|o| o.target_cluster_bytes = Some(3000)).unwrap_err().contains("target-cluster-size"));
        assert!(with(|o| o.target_cluster_bytes = Some(4 * MIB)).is_err());
        assert!(with(|o| o.extents = Some(ExtentMap::default())).unwrap_err().contains("top"));
    }
}
