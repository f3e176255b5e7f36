//! What a host may rely on, without a queue and without an engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use proptest::prelude::*;

use super::*;
use crate::drive::core::DriveCore;
use crate::drive::follower::Follower;
use crate::drive::{Admission, IoKind};
use crate::mirror::{Bitmaps, DeviceShape, Geometry, MirrorOptions, Share};
use crate::ring::Wake;
use crate::units::{Chunk, Granularity, KIB, MIB, bytes_u64, bytes_usize};

/// Bytes of the drive; the last chunk is short.
const DISK: u64 = MIB - 1536;
/// Bytes of a chunk.
const CHUNK: u64 = 4 * KIB;

type Drive = Arc<DriveCore<&'static str>>;

/// A drive on a device that is a name.
fn drive() -> Drive {
    DriveCore::new(Arc::new("source"), DISK, 512, true)
}

/// A bitmap of it.
fn bitmap(drive: &Drive, name: &str, enabled: bool) -> Bitmap {
    drive.add_bitmap(name, Some(Granularity::new(CHUNK).unwrap()), enabled).unwrap()
}

/// A request of the host's, from beginning to end.
fn request(drive: &Drive, range: ByteRange, kind: IoKind, result: std::result::Result<(), i32>) {
    let Admission::Go(token) = drive.begin(range, kind, || 1).unwrap() else { panic!("held") };
    drive.end(token, result, || 1).unwrap();
}

/// A write that goes well.
fn write(drive: &Drive, start: u64, len: u64) {
    request(drive, ByteRange::at(start, len), IoKind::Write, Ok(()));
}

/// The kind of error that something failed with.
fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// The dirty areas.
fn areas(bitmap: &Bitmap) -> Vec<(u64, u64)> {
    let (mut areas, mut from) = (Vec::new(), 0);
    while let Some(area) = bitmap.next_dirty(from, DISK, u64::MAX).unwrap() {
        areas.push((area.start(), area.end()));
        from = area.end();
    }
    areas
}

/// A home that is never asleep.
#[derive(Debug)]
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

/// A job that works with this bitmap, or with one of its own.
fn follower(working: Option<&Bitmap>) -> Result<Arc<Follower<&'static str>>> {
    let shape =
        DeviceShape { size_bytes: DISK, align_bytes: 512, max_request_bytes: MIB, ..DeviceShape::default() };
    let options = MirrorOptions { bitmap: working.map(Bitmap::working), ..MirrorOptions::default() };
    let geometry = Geometry::new(&options, &shape, &shape, 1)?;
    let share = Share::new(
        geometry,
        &options,
        Bitmaps::new(&Geometry::new(&options, &shape, &shape, 1)?, &options)?,
        false,
        1,
    );
    Ok(Arc::new(Follower { share: Arc::new(share), target: Arc::new("target"), home: Arc::new(Awake) }))
}

/// A host that finds a bitmap by its name must not find two, and a name that a store could not keep must not come into use.
#[test]
fn names_are_unique_and_bounded_and_so_is_the_number_of_bitmaps() {
    let (one, other) = (drive(), drive());
    let longest = "x".repeat(255);
    let first = bitmap(&one, &longest, true);
    assert_eq!((first.name(), first.granularity().bytes()), (longest.as_str(), CHUNK));
    assert_eq!(kind(one.add_bitmap(&longest, None, true)), ErrorKind::AlreadyExists);
    for bad in ["", &"x".repeat(256)] {
        assert_eq!(kind(one.add_bitmap(bad, None, true)), ErrorKind::InvalidArgument);
    }
    let _elsewhere = bitmap(&other, &longest, true);
    let many: Vec<_> = (1..MAX_BITMAPS).map(|n| bitmap(&one, &n.to_string(), n % 2 == 0)).collect();
    let refused = one.add_bitmap("one too many", None, false).unwrap_err();
    assert!(refused.kind() == ErrorKind::LimitReached && refused.to_string().contains("64"), "{refused}");
    let again = many[1].clone();
    drop(many);
    assert_eq!(kind(one.add_bitmap("2", None, true)), ErrorKind::AlreadyExists, "a handle is left");
    drop(again);
    assert_eq!(one.add_bitmap("2", None, true).unwrap().granularity().bytes(), 64 * KIB);
}

/// A failed write may have done anything, and one that began before the bitmap was enabled is on the disk after that.
#[test]
fn every_write_that_ends_while_it_is_enabled_is_recorded_and_nothing_else() {
    let drive = drive();
    let (early, late) = (bitmap(&drive, "early", true), bitmap(&drive, "late", false));
    let Admission::Go(token) = drive.begin(ByteRange::at(0, 512), IoKind::Write, || 1).unwrap() else {
        panic!("held")
    };
    write(&drive, 10 * CHUNK, 512);
    late.enable().unwrap();
    drive.end(token, Ok(()), || 1).unwrap();
    request(&drive, ByteRange::at(20 * CHUNK, CHUNK), IoKind::Read, Ok(()));
    request(&drive, ByteRange::default(), IoKind::Flush, Ok(()));
    for (chunk, kind) in [(30, IoKind::Write), (40, IoKind::WriteZeroes), (50, IoKind::Discard)] {
        request(&drive, ByteRange::at(chunk * CHUNK, CHUNK), kind, Err(libc::EIO));
    }
    late.disable().unwrap();
    write(&drive, DISK - 1, 1);
    let recorded = |chunks: &[u64]| chunks.iter().map(|n| (n * CHUNK, n * CHUNK + CHUNK)).collect::<Vec<_>>();
    assert_eq!(areas(&late), recorded(&[0, 30, 40, 50]));
    let mut all = recorded(&[0, 10, 30, 40, 50]);
    all.push((255 * CHUNK, DISK));
    assert_eq!(areas(&early), all);
    assert_eq!(early.info().dirty_bytes, 5 * CHUNK + DISK % CHUNK, "the last chunk is short");
    assert!(early.info().recording && !late.info().recording);
}

/// Otherwise a host that is done with its bitmaps slows the guest down until the drive goes, or keeps its disk open for ever.
#[test]
fn a_bitmap_leaves_the_drive_with_its_last_handle_and_does_not_keep_the_drive() {
    let drive = drive();
    let (kept, dropped) = (bitmap(&drive, "kept", true), bitmap(&drive, "dropped", true));
    let bits = Arc::downgrade(&dropped.working());
    drop(dropped.clone());
    write(&drive, 0, 512);
    assert_eq!(dropped.info().dirty_bytes, CHUNK);
    drop(dropped);
    write(&drive, CHUNK, 512);
    assert!(bits.upgrade().is_none(), "the drive keeps what nobody can see");
    let device: Weak<&str> = Arc::downgrade(&drive.place().device);
    drop(drive);
    assert!(device.upgrade().is_none(), "a bitmap keeps the device open");
    assert_eq!(kept.info().dirty_bytes, 2 * CHUNK);
    assert_eq!(kind(kept.enable()), ErrorKind::WrongState);
    kept.disable().unwrap();
}

/// Something that would change a bitmap, by name.
type Attempt<'a> = (&'a str, Box<dyn Fn() -> Result<()> + 'a>);

/// What a host changes while a job works with the bitmap, the job copies twice or not at all.
#[test]
fn whatever_would_change_a_bitmap_is_refused_while_a_job_works_with_it() {
    let drive = drive();
    let (working, other) = (bitmap(&drive, "working", true), bitmap(&drive, "other", true));
    other.set(ByteRange::at(0, DISK)).unwrap();
    let job = follower(Some(&working)).unwrap();
    let attempts: [Attempt<'_>; 8] = [
        ("clear", Box::new(|| working.clear())),
        ("enable", Box::new(|| working.enable())),
        ("disable", Box::new(|| working.disable())),
        ("set", Box::new(|| working.set(ByteRange::at(0, 1)))),
        ("reset", Box::new(|| working.reset(ByteRange::at(0, CHUNK)))),
        ("merge into", Box::new(|| working.merge_from(&[&other]))),
        ("merge from", Box::new(|| other.merge_from(&[&working]))),
        ("work with", Box::new(|| follower(Some(&working)).map(drop))),
    ];
    for (what, attempt) in &attempts {
        let refused = attempt().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy, "{what}: {refused}");
    }
    let info = working.info();
    assert!(info.busy && info.recording && info.dirty_bytes == 0, "{info:?}");
    assert_eq!(working.next_dirty(0, DISK, 1).unwrap(), None);
    drop(job);
    for (what, attempt) in &attempts {
        attempt().unwrap_or_else(|refused| panic!("{what}: {refused}"));
    }
    assert!(!working.info().busy);
}

/// A bitmap that both the job and the recorder marked would never be clean under write-blocking writes; one that neither marks
/// loses writes.
#[test]
fn a_write_under_a_job_is_marked_once_in_what_the_job_works_with_and_recorded_everywhere_else() {
    let drive = drive();
    let (working, other) = (bitmap(&drive, "working", true), bitmap(&drive, "other", true));
    write(&drive, 0, 512);
    let job = follower(Some(&working)).unwrap();
    // The job counted what is dirty; this comes before it is attached.
    write(&drive, 10 * CHUNK, 512);
    drive.attach(Arc::clone(&job)).unwrap();
    assert_eq!(job.share.dirty.dirty_bytes(), 2 * CHUNK);
    write(&drive, 20 * CHUNK, 512);
    // One that went to both sides.
    drive.written_beside(ByteRange::at(30 * CHUNK, CHUNK), &job);
    assert!(!working.working().test(Chunk(30)) && other.working().test(Chunk(30)));
    assert_eq!((job.share.dirty.dirty_bytes(), working.info().dirty_bytes), (3 * CHUNK, 3 * CHUNK));
    drive.detach();
    // One that the job had sent to both sides, and that ends only now.
    drive.written_beside(ByteRange::at(40 * CHUNK, CHUNK), &job);
    drop(job);
    write(&drive, 50 * CHUNK, 512);
    let chunks = |list: &[u64]| list.iter().map(|n| (n * CHUNK, n * CHUNK + CHUNK)).collect::<Vec<_>>();
    assert_eq!(areas(&working), chunks(&[0, 10, 20, 40, 50]));
    assert_eq!(areas(&other), chunks(&[0, 10, 20, 30, 40, 50]));
    // Under the next job it is recorded, unless that one works with it.
    let next = follower(Some(&other)).unwrap();
    drive.attach(Arc::clone(&next)).unwrap();
    write(&drive, 60 * CHUNK, 512);
    assert!(working.working().test(Chunk(60)) && next.share.dirty.test(Chunk(60)));
    assert!(working.disable().is_ok(), "nobody works with this one");
}

/// A bitmap that is not enabled is the job's alone, and nothing is recorded in it after the job.
#[test]
fn a_working_bitmap_that_did_not_record_does_not_record_after_the_job_either() {
    let drive = drive();
    let working = bitmap(&drive, "working", false);
    let job = follower(Some(&working)).unwrap();
    drive.attach(job).unwrap();
    write(&drive, 0, 512);
    drive.detach();
    write(&drive, CHUNK, 512);
    assert_eq!(areas(&working), [(0, CHUNK)]);
}

/// Writes of one drive would be copied from another, and the job would never be done.
#[test]
fn a_job_does_not_work_with_a_bitmap_that_records_another_drive() {
    let (one, other) = (drive(), drive());
    let working = bitmap(&other, "other's", true);
    let refused = one.attach(follower(Some(&working)).unwrap()).unwrap_err();
    assert!(refused.kind() == ErrorKind::InvalidArgument && refused.to_string().contains("another drive"));
    assert!(!one.has_job() && !working.info().busy, "a refused job keeps nothing");
    working.disable().unwrap();
    one.attach(follower(Some(&working)).unwrap()).unwrap();
    write(&one, 0, 512);
    assert_eq!(areas(&working), [(0, CHUNK)]);
}

/// A merge of which a part happened could be neither repeated nor undone.
#[test]
fn a_merge_is_refused_as_a_whole() {
    let (one, other) = (drive(), DriveCore::new(Arc::new("small"), DISK / 512 * 256, 512, true));
    let [into, good] = ["into", "good"].map(|name| bitmap(&one, name, false));
    let coarse = one.add_bitmap("coarse", None, false).unwrap();
    let small = bitmap(&other, "small", false);
    good.set(ByteRange::at(0, 1)).unwrap();
    for bad in [&coarse, &small] {
        let refused = into.merge_from(&[&good, bad]).unwrap_err();
        assert!(refused.kind() == ErrorKind::InvalidArgument && refused.to_string().contains(bad.name()));
        assert_eq!(into.info().dirty_bytes, 0);
    }
    into.merge_from(&[]).unwrap();
    into.merge_from(&[&into, &good, &good, &into.clone()]).unwrap();
    assert_eq!(areas(&into), [(0, CHUNK)]);
    let same = drive();
    let elsewhere = bitmap(&same, "elsewhere", true);
    write(&same, CHUNK, 1);
    into.merge_from(&[&elsewhere]).unwrap();
    assert_eq!(areas(&into), [(0, 2 * CHUNK)], "adjacent chunks are one area");
}

/// Somebody who has looked before the pair was replaced, twice even, marks late: a host that reads out what it has disabled would
/// miss it, and a job's home would sleep over the mark.
#[test]
fn who_disables_a_bitmap_or_attaches_a_job_to_it_waits_for_those_who_have_looked_already() {
    for attaches in [false, true] {
        let drive = drive();
        let (bits, other) = (bitmap(&drive, "bits", true), bitmap(&drive, "other", false));
        drive.attach(follower(None).unwrap()).unwrap();
        let next = if attaches { follower(Some(&bits)).unwrap() } else { follower(None).unwrap() };
        let has_looked = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drive.watchers().after_write(ByteRange::at(0, 1), |_| {
                    has_looked.wait();
                    std::thread::sleep(std::time::Duration::from_millis(30));
                });
            });
            has_looked.wait();
            other.enable().unwrap();
            drive.detach();
            if attaches {
                drive.attach(next).unwrap();
            } else {
                bits.disable().unwrap();
            }
            assert_eq!(areas(&bits), [(0, CHUNK)], "attaches: {attaches}");
        });
    }
}

/// Tells guests to stop, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A host that reads out what it has disabled must not be met by a straggler; and two who merge crosswise must not wait for each
/// other for ever.
#[test]
fn a_disabled_bitmap_stands_still_while_guests_write_and_hosts_merge() {
    let drive = drive();
    let (bits, other) = (bitmap(&drive, "bits", true), bitmap(&drive, "other", true));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 1..3_u64 {
            let (drive, stop) = (&drive, &stop);
            scope.spawn(move || {
                let mut x = seed;
                while !stop.load(Ordering::Relaxed) {
                    x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    write(drive, (x >> 33) % 250 * CHUNK, CHUNK);
                }
            });
        }
        let end = Stop(&stop);
        let merging = scope.spawn(|| (0..3000).try_for_each(|_| other.merge_from(&[&bits])));
        for round in 0..3000 {
            bits.merge_from(&[&other]).unwrap();
            bits.disable().unwrap();
            bits.clear().unwrap();
            for _ in 0..20 {
                assert_eq!(bits.info().dirty_bytes, 0, "round {round}: it was disabled");
            }
            bits.enable().unwrap();
        }
        drop(end);
        merging.join().unwrap().unwrap();
    });
    assert_eq!(other.working().counted(), other.working().count());
}

/// What is asked of a bitmap.
#[derive(Clone, Debug)]
enum Ask {
    Write(ByteRange),
    Set(ByteRange),
    Reset(ByteRange),
    Clear,
    Merge(ByteRange),
    Next(u64, u64, u64),
}

/// A range that may be empty, and past the end.
fn range() -> impl Strategy<Value = ByteRange> {
    let start = prop_oneof![0..DISK, (0..256_u64).prop_map(|chunk| chunk * CHUNK)];
    let len =
        prop_oneof![0..600_u64, 0..80_000_u64, (0..20_u64).prop_map(|chunks| chunks * CHUNK), Just(DISK)];
    (start, len, any::<bool>()).prop_map(|(start, len, cut)| {
        let range = ByteRange::at(start, len);
        if cut { range.intersect(ByteRange::new(0, DISK)) } else { range }
    })
}

/// Anything.
fn ask() -> impl Strategy<Value = Ask> {
    let max = prop_oneof![0..3_u64, 1..100_000_u64, Just(u64::MAX)];
    prop_oneof![
        range().prop_map(Ask::Write),
        range().prop_map(Ask::Set),
        range().prop_map(Ask::Reset),
        range().prop_map(Ask::Merge),
        Just(Ask::Clear),
        (0..DISK + 1, prop_oneof![0..DISK + 2, Just(DISK)], max)
            .prop_map(|(start, end, max)| Ask::Next(start, end, max)),
    ]
}

/// A flag for each byte: slow, and obvious.
struct Model(Vec<bool>);

impl Model {
    /// The bytes of a chunk.
    fn chunk(at: u64) -> std::ops::Range<usize> {
        bytes_usize(at / CHUNK * CHUNK)..bytes_usize((at / CHUNK * CHUNK + CHUNK).min(DISK))
    }

    fn touch(&mut self, range: ByteRange) {
        for at in range.start()..range.end() {
            if !self.0[bytes_usize(at)] {
                self.0[Self::chunk(at)].fill(true);
            }
        }
    }

    fn reset(&mut self, range: ByteRange) {
        for chunk in (0..DISK.div_ceil(CHUNK)).map(|chunk| Self::chunk(chunk * CHUNK)) {
            if bytes_u64(chunk.start) >= range.start() && bytes_u64(chunk.end) <= range.end() {
                self.0[chunk].fill(false);
            }
        }
    }

    fn next(&self, start: u64, end: u64, max: u64) -> Option<ByteRange> {
        let dirty = |at: &u64| self.0[bytes_usize(*at)];
        let first = (start..end).find(dirty)?;
        let len = (first..end).take_while(dirty).take(usize::try_from(max).unwrap()).count();
        Some(ByteRange::at(first, bytes_u64(len)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_bitmap_does_what_a_flag_for_each_byte_does(asks in prop::collection::vec(ask(), 1..40)) {
        let drive = drive();
        let bits = bitmap(&drive, "bits", true);
        let mut model = Model(vec![false; bytes_usize(DISK)]);
        for ask in asks {
            let inside = |range: ByteRange| range.end() <= DISK;
            let done = match ask {
                Ask::Write(range) if range.is_empty() || !inside(range) => continue,
                Ask::Write(range) => {
                    request(&drive, range, IoKind::Write, Ok(()));
                    model.touch(range);
                    continue;
                }
                Ask::Set(range) => (bits.set(range), range),
                Ask::Reset(range) => (bits.reset(range), range),
                Ask::Merge(range) => {
                    let other = bitmap(&drive, "other", false);
                    let set = other.set(range);
                    bits.merge_from(&[&other]).unwrap();
                    (set, range)
                }
                Ask::Clear => {
                    bits.clear().unwrap();
                    model.0.fill(false);
                    continue;
                }
                Ask::Next(start, end, max) => {
                    let found = bits.next_dirty(start, end, max);
                    if start > end || end > DISK || max == 0 {
                        prop_assert_eq!(kind(found), ErrorKind::InvalidArgument);
                    } else {
                        prop_assert_eq!(found.unwrap(), model.next(start, end, max));
                    }
                    continue;
                }
            };
            match (done, &ask) {
                ((Ok(()), range), Ask::Reset(_)) if inside(range) => model.reset(range),
                ((Ok(()), range), _) if inside(range) => model.touch(range),
                ((result, range), _) => {
                    prop_assert!(!inside(range));
                    prop_assert_eq!(kind(result), ErrorKind::InvalidArgument);
                }
            }
            let dirty = model.0.iter().filter(|dirty| **dirty).count();
            prop_assert_eq!(bits.info().dirty_bytes, bytes_u64(dirty));
        }
    }
}
