//! Bitmaps of the drive: they are enabled, disabled and cleared at random times, and one of them is what jobs work with.
//!
//! What must hold, after every step and whatever the jobs do:
//!
//! - A write that ended while a bitmap recorded is in it, and stays there until the bitmap is cleared.
//! - Where the drive holds something else than when the bitmap began to record, the bitmap says so, unless a write is on its way
//!   there. This needs to know nothing of requests, so it sees what a queue lost as well.
//! - A bitmap that does not record stands still.
//! - While a job works with a bitmap, all that would change it is refused.
//! - After such a job the bitmap goes on, and what it holds is then compared with the disk that was left behind: the target, or
//!   with a pivot the source. The next job is given that disk as its target and the bitmap for what to copy.
//!
//! It has a source of chance of its own, so what it does changes nothing of what a seed does besides.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::guests::changes;
use super::recipe::{MS, Recipe};
use super::simulation::{Simulation, Wrong};
use crate::bitmap::DirtyBitmap;
use crate::drive::queue::Wish;
use crate::drive::{Bitmap, DriveCore};
use crate::error::ErrorKind;
use crate::ring::sim::{Faults, SimDisk, World};
use crate::units::{ByteRange, Chunk, ChunkRange, Granularity, KIB, bytes_usize};

/// One step in so many is followed by a look at all chunks.
const CHUNKS_EVERY: u64 = 1000;

/// What is recorded in a run.
#[derive(Clone, Debug)]
pub(super) struct RecordingPlan {
    /// Bitmaps beside the one that jobs work with, with the sizes of their chunks.
    granularities: Vec<u64>,
    /// The time between two times that the host does something with one, on average; 0 = never.
    meddle_ns: u64,
    /// Jobs that work with a bitmap work with one that records.
    pub(super) working: bool,
}

impl RecordingPlan {
    /// The plan of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let chance = World::new(seed.wrapping_mul(0x9e6c_63d0_876a_3f6b), Faults::default());
        let granularities = (0..chance.pick(3)).map(|_| 512 << (2 * chance.pick(4))).collect();
        let meddle_ns = [0, MS / 4, 2 * MS, 10 * MS][bytes_usize(chance.pick(4))];
        Self { granularities, meddle_ns, working: chance.pick(4) > 0 }
    }
}

/// A bitmap, and what must be in it.
#[derive(Debug)]
struct Note {
    /// The bitmap.
    bitmap: Bitmap,
    /// Since when it records, by the model's clock.
    since: Option<u64>,
    /// What the drive held then.
    base: Vec<u8>,
    /// Chunks of writes that have ended since.
    ended: Vec<bool>,
    /// What it held when it was disabled.
    still: Vec<u8>,
}

impl Note {
    /// A bitmap that does not record.
    fn new(
        drive: &Arc<DriveCore<SimDisk>>,
        name: &str,
        granularity: Option<Granularity>,
    ) -> Result<Self, Wrong> {
        let bitmap = drive.add_bitmap(name, granularity, false).map_err(|e| Wrong::new(e.to_string()))?;
        Ok(Self { bitmap, since: None, base: Vec::new(), ended: Vec::new(), still: Vec::new() })
    }

    /// It records, or begins anew; the drive, or whatever it is compared with, holds this.
    fn begin(&mut self, now: u64, content: Vec<u8>) {
        let chunks = self.bitmap.working().chunks();
        (self.since, self.base, self.ended) = (Some(now), content, vec![false; bytes_usize(chunks)]);
    }

    /// It does not record.
    fn end(&mut self) {
        (self.since, self.still) = (None, self.bits());
    }

    /// All its bits.
    fn bits(&self) -> Vec<u8> {
        self.bitmap.working().to_bytes(ChunkRange::new(0, u64::MAX))
    }

    /// A write has ended that was sent at `sent`; `false` when that was not recorded. `exactly`: it ended just now.
    fn write_ended(&mut self, range: ByteRange, sent: u64, exactly: bool) -> bool {
        if self.since.is_none_or(|since| !exactly && since > sent) {
            return true;
        }
        let (bits, chunks) = (self.bitmap.working(), self.bitmap.granularity().chunks_touched(range));
        (chunks.start()..chunks.end()).all(|chunk| {
            self.ended[bytes_usize(chunk)] = true;
            bits.test(Chunk(chunk))
        })
    }

    /// What is wrong with it, with this on the drive and writes under way.
    fn wrong(&self, content: &[u8], written: &[ByteRange]) -> Option<String> {
        let (bits, granularity, name) =
            (self.bitmap.working(), self.bitmap.granularity(), self.bitmap.name());
        if self.since.is_none() {
            return (self.bits() != self.still)
                .then(|| format!("bitmap {name} changed, and does not record"));
        }
        (0..bits.chunks()).filter(|&chunk| !bits.test(Chunk(chunk))).find_map(|chunk| {
            let range = granularity.bytes_of(ChunkRange::new(chunk, chunk + 1), bits.disk_bytes());
            let part = bytes_usize(range.start())..bytes_usize(range.end());
            if self.ended[bytes_usize(chunk)] {
                return Some(format!("bitmap {name} has lost a write in chunk {chunk}"));
            }
            let differs = self.base[part.clone()] != content[part];
            (differs && !written.iter().any(|other| other.overlaps(range)))
                .then(|| format!("chunk {chunk} has changed, and bitmap {name} does not say so"))
        })
    }
}

/// A bitmap for a job to work with, and the disk that it is compared with if it is that of the job before.
type Working = (Arc<DirtyBitmap>, Option<Vec<u8>>);

/// The host as far as it has bitmaps.
#[derive(Debug)]
pub(super) struct Recorder {
    /// Its chance.
    chance: Arc<World>,
    /// When it does something next.
    next_ns: u64,
    /// Its bitmaps.
    notes: Vec<Note>,
    /// What jobs work with; it records when no job does.
    working: Option<Note>,
    /// What that was compared with at the end of the last job.
    left: Option<Vec<u8>>,
}

impl Recorder {
    /// The host of a recipe, with its bitmaps.
    pub(super) fn new(recipe: &Recipe, drive: &Arc<DriveCore<SimDisk>>) -> Result<Self, Wrong> {
        let plan = &recipe.recording;
        let mut notes = Vec::new();
        for (number, &bytes) in plan.granularities.iter().enumerate() {
            let mut note = Note::new(drive, &format!("of {bytes}, {number}"), Granularity::new(bytes).ok())?;
            note.bitmap.enable().map_err(|e| Wrong::new(e.to_string()))?;
            note.begin(0, drive.place().device.content());
            notes.push(note);
        }
        let chance = World::new(recipe.seed ^ 0x7265_636f_7264, Faults::default());
        Ok(Self { chance, next_ns: plan.meddle_ns, notes, working: None, left: None })
    }

    /// All of them that record without a job.
    fn all(&mut self) -> impl Iterator<Item = &mut Note> {
        self.notes.iter_mut().chain(self.working.as_mut().filter(|note| note.since.is_some()))
    }
}

impl Simulation {
    /// A write of a guest has ended, in this very step unless a target kept the host's memory: it is recorded.
    pub(super) fn write_ended(&mut self, range: ByteRange, sent: u64, exactly: bool) -> Result<(), Wrong> {
        for note in self.recorder.all() {
            self.story.recorded += u64::from(note.since.is_some());
            if !note.write_ended(range, sent, exactly) {
                let name = note.bitmap.name();
                return Err(Wrong::new(format!(
                    "a write of {range} has ended, and bitmap {name} does not know"
                )));
            }
        }
        Ok(())
    }

    /// The same for one that was asked on a queue.
    pub(super) fn asked_write_ended(&mut self, wish: Wish, range: ByteRange, sent: u64) -> Result<(), Wrong> {
        // Where the host's memory is lent, the answer may come later than the mark.
        let exactly = !self.recipe.guests.stable_buffers;
        if changes(wish) { self.write_ended(range, sent, exactly) } else { Ok(()) }
    }

    /// After a step: does something with a bitmap if it is time, and looks at all now and then.
    pub(super) fn record(&mut self) -> Result<(), Wrong> {
        let now_ns = self.world.now_ns();
        let meddle_ns = self.recipe.recording.meddle_ns;
        if meddle_ns > 0 && now_ns >= self.recorder.next_ns {
            self.recorder.next_ns = now_ns + 1 + self.recorder.chance.pick(2 * meddle_ns);
            self.check_recorded()?;
            self.meddle_with_bitmaps()?;
        }
        if self.recorder.chance.pick(CHUNKS_EVERY) == 0 { self.check_recorded() } else { Ok(()) }
    }

    /// Enables, disables or clears one.
    fn meddle_with_bitmaps(&mut self) -> Result<(), Wrong> {
        let Recorder { notes, chance, working, .. } = &mut self.recorder;
        let now = self.model.tick();
        let (content, verb) = (self.drive.place().device.content(), chance.pick(5));
        if let Some(note) = working.as_ref().filter(|note| note.bitmap.info().busy) {
            let bitmap = &note.bitmap;
            let refused = match verb {
                0 => bitmap.clear(),
                1 => bitmap.enable(),
                2 => bitmap.disable(),
                3 => bitmap.merge_from(&[]),
                _ => bitmap.set(ByteRange::at(0, 1)),
            };
            if refused.as_ref().map_err(crate::Error::kind) != Err(ErrorKind::Busy) {
                return Err(Wrong::new(format!(
                    "verb {verb} on a bitmap that a job works with: {refused:?}"
                )));
            }
        }
        let number = bytes_usize(chance.pick(notes.len().max(1) as u64));
        let Some(note) = notes.get_mut(number) else { return Ok(()) };
        let done = match (verb, note.since) {
            (0, Some(_)) => {
                note.end();
                note.bitmap.disable()
            }
            (0 | 1, None) => {
                note.begin(now, content);
                note.bitmap.enable()
            }
            (2, since) => {
                let done = note.bitmap.clear();
                match since {
                    Some(since) => note.begin(since, content),
                    None => note.end(),
                }
                done
            }
            (3, None) => {
                let range = ByteRange::at(0, KIB);
                let done = note.bitmap.set(range).and_then(|()| note.bitmap.reset(range));
                note.end();
                done
            }
            _ => Ok(()),
        };
        done.map_err(|e| Wrong::new(format!("verb {verb} on a bitmap: {e}")))
    }

    /// All bitmaps say what they must.
    pub(super) fn check_recorded(&mut self) -> Result<(), Wrong> {
        if self.recorder.all().next().is_none() {
            return Ok(());
        }
        let written = self.being_written();
        let device = Arc::clone(&self.drive.place().device);
        let wrong = device.look(|content| self.recorder.all().find_map(|note| note.wrong(content, &written)));
        wrong.map_or(Ok(()), |wrong| Err(Wrong::new(wrong)))
    }

    /// The bitmap that the next job works with, if it is one that records; and the disk that this is compared with, if a job had it
    /// before. The host sets in it what is to be copied otherwise.
    pub(super) fn working_bitmap(&mut self) -> Result<Option<Working>, Wrong> {
        if !self.recipe.recording.working {
            return Ok(None);
        }
        self.check_recorded()?;
        let Recorder { working, left, .. } = &mut self.recorder;
        if working.as_ref().is_some_and(|note| note.bitmap.info().busy) {
            // The last job's requests hang; the drive goes on to record in it, and the next job has another.
            (*working, *left) = (None, None);
        }
        let mut note = match working.take() {
            Some(note) => note,
            None => {
                let note = Note::new(&self.drive, "working", Some(self.recipe.granularity))?;
                note.bitmap.enable().map_err(|e| Wrong::new(e.to_string()))?;
                note
            }
        };
        note.since = None;
        let bits = note.bitmap.working();
        *working = Some(note);
        let left = left.take();
        self.story.resumed += u32::from(left.is_some());
        Ok(Some((bits, left)))
    }

    /// A job is over that may have worked with a bitmap of the drive; `left` is the disk that it did not leave the drive on, and
    /// with `equal` it is a copy of it.
    pub(super) fn job_left_bitmap(&mut self, left: &SimDisk, equal: bool) -> Result<(), Wrong> {
        let now = self.model.tick();
        let (left, content) = (left.content(), self.drive.place().device.content());
        let Recorder { working: Some(note), left: kept, .. } = &mut self.recorder else { return Ok(()) };
        if !note.bitmap.info().recording {
            return Err(Wrong::new("a bitmap does not record any more after a job"));
        }
        // What a job that did not complete has left behind was looked at by `check_clean`.
        note.begin(now, if equal { left.clone() } else { content });
        *kept = Some(left);
        self.check_recorded()
    }
}
