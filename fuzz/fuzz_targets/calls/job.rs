//! Calls on a job that may be NULL, and on its engine's events: a job that is cancelled by force ends.
use std::ptr::{null, null_mut};

use blkmirror::*;
use blkmirror_fuzz::{check, engine};

use crate::call::Mirror;
use crate::run::Run;

// SAFETY of all calls below: they pass on handles and variables of the run, or NULL, as its contract says.
impl Run {
    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn mirror(&mut self, m: &Mirror) {
        if !self.job.is_null() {
            return;
        }
        let opts = blkm_mirror_opts {
            struct_size: size_of::<blkm_mirror_opts>(),
            flags: u64::from(m.flags & 127),
            user_data: null_mut(),
            bitmap: if m.sync & 4 == 0 { self.bitmap } else { null_mut() },
            extents: null(),
            extents_len: 0,
            speed_bytes_per_s: u64::from(m.speed),
            buf_size_bytes: u64::from(m.flags) << 12,
            granularity_bytes: u64::from(m.granularity),
            target_cluster_bytes: if m.flags & 256 == 0 { 0 } else { u64::from(m.granularity) },
            max_pause_ns: m.pause,
            latency_budget_value: u64::from(m.budget[1]) * 5,
            latency_budget: u32::from(m.budget[0] & 7),
            sync: u32::from(m.sync & 7),
            copy_mode: u32::from(m.mode & 3),
            on_source_error: u32::from(m.errors[0] & 7),
            on_target_error: u32::from(m.errors[1] & 7),
            reserved0: 0,
            reserved: [0; 6],
        };
        let (drive, target) = (self.drive, self.devices[1]);
        // SAFETY: see above.
        check(unsafe { blkm_mirror_start(engine(), drive, target, &raw const opts, &raw mut self.job) });
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn drop_job(&mut self) {
        if self.job.is_null() {
            return;
        }
        // SAFETY: see above.
        unsafe { blkm_job_cancel(self.job, true) };
        // A queue that is not turned keeps its seat on the target, not the job.
        // SAFETY: see above.
        let over = check(unsafe { blkm_job_wait(self.job, 20_000_000_000) });
        assert_eq!(over, 1, "a job that was cancelled by force goes on");
        // SAFETY: see above.
        unsafe { blkm_job_close(&raw mut self.job) };
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn use_job(&mut self, verb: u8, number: u64) {
        let job = self.job;
        // SAFETY: see above; one call, which the verb chooses.
        let answer = unsafe {
            match verb % 15 {
                0 => blkm_job_pause(job),
                1 => blkm_job_resume(job),
                2 => blkm_job_set_speed(job, number),
                3 => blkm_job_set_copy_mode(job, (number % 4) as u32),
                13 => blkm_job_set_max_pause(job, number),
                4 => blkm_job_complete(job, (number % 3) as u32),
                5 => blkm_job_cancel(job, number & 1 == 0),
                6 => blkm_job_finalize(job),
                7 => blkm_job_dismiss(job),
                8 => blkm_job_get_status(job),
                9 => {
                    let mut info = std::mem::zeroed::<blkm_job_info>();
                    info.struct_size = size_of::<blkm_job_info>();
                    blkm_job_query(job, &raw mut info)
                }
                10 => {
                    let mut outcome = std::mem::zeroed::<blkm_outcome>();
                    outcome.struct_size = size_of::<blkm_outcome>();
                    blkm_job_get_outcome(job, &raw mut outcome)
                }
                11 => {
                    let mut text = [0; 64];
                    blkm_job_get_error(job, text.as_mut_ptr(), (number % 65) as usize)
                }
                12 => {
                    let mut counts = std::mem::zeroed::<blkm_latencies>();
                    counts.struct_size = size_of::<blkm_latencies>();
                    blkm_job_get_latencies(job, &raw mut counts, null_mut())
                }
                _ => blkm_job_wait(job, (number % 2_000_000) as i64),
            }
        };
        check(answer);
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn take_event(&mut self) {
        // SAFETY: numbers, pointers and arrays of numbers, which may all be zero.
        let mut event = unsafe { std::mem::zeroed::<blkm_event>() };
        event.struct_size = size_of::<blkm_event>();
        // SAFETY: see above.
        if check(unsafe { blkm_engine_next_event(engine(), &raw mut event) }) == 1 {
            assert_eq!(event.job, self.job);
            assert!((1..=11).contains(&event.r#type));
        }
    }
}
