//! Sizes that follow from a job's options and the limits of both devices, computed once.

use super::options::MirrorOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteRange, ChunkRange, Granularity, KIB, MIB};

/// The largest run, and the largest request: what QEMU calls MAX_IO_BYTES.
const RUN_BYTES: u64 = MIB;
/// What a worker takes from the sweep at a time.
const SEGMENT_BYTES: u64 = 16 * MIB;
/// The longest hole that is claimed at once.
const HOLE_BYTES: u64 = 1024 * MIB;
/// The largest zeroing request: it blocks a thread, and a cancelled job waits for it.
const ZERO_BYTES: u64 = 64 * MIB;
/// The finest unit in which zeroes are looked for inside data.
const ZERO_UNIT_BYTES: u64 = 4 * KIB;
/// Bytes in flight unless the host says otherwise: 16 x 1 MiB.
const DEFAULT_BUF_SIZE_BYTES: u64 = 16 * MIB;
/// Requests in flight where the device has no queue that says how many it takes.
const DEFAULT_DEPTH: usize = 1024;

/// What the logic must know of a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceShape {
    /// For error texts.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What offsets and lengths must be a multiple of.
    pub align_bytes: u64,
    /// The largest request that the device takes in one piece from the window's memory.
    pub max_request_bytes: u64,
    /// Requests that its queue takes; `None` where it does not say.
    pub queue_depth: Option<usize>,
    /// Whether block status can tell holes from data.
    pub has_holes: bool,
    /// Whether it reads as zeroes now.
    pub reads_as_zeroes: bool,
    /// Whether it has no command for zeroes, so that zeroing it writes them.
    pub writes_zeroes: bool,
}

/// The sizes of a job.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Bytes of the disk: what the source's shape says, which is the size of the drive.
    pub disk_bytes: u64,
    /// Bytes of a chunk.
    pub granularity: Granularity,
    /// What requests are a multiple of on both sides.
    pub align_bytes: u64,
    /// The largest request.
    pub request_bytes: u64,
    /// The largest run of data.
    pub run_bytes: u64,
    /// The longest hole that is claimed at once.
    pub hole_bytes: u64,
    /// The largest zeroing request.
    pub zero_bytes: u64,
    /// What a worker takes from the sweep at a time.
    pub segment_bytes: u64,
    /// The unit in which zeroes are looked for inside data.
    pub zero_unit_bytes: u64,
    /// The unit of copy-on-write, if the target does that: everything is copied in whole clusters at first touch.
    pub cluster: Option<Granularity>,
    /// Bytes in flight per worker.
    pub buf_bytes: u64,
    /// Reads in flight per worker.
    pub source_depth: usize,
    /// Writes in flight per worker.
    pub target_depth: usize,
    /// Whether the source must be asked where its holes are.
    pub ask_status: bool,
    /// Whether zeroing the target writes zeroes.
    pub writes_zeroes: bool,
}

impl Geometry {
    /// Works out the sizes for a job of `workers` workers.
    ///
    /// # Errors
    /// When the devices do not fit each other; the text names the one that is wrong.
    pub fn new(
        options: &MirrorOptions,
        source: &DeviceShape,
        target: &DeviceShape,
        workers: usize,
    ) -> Result<Self> {
        options.validate()?;
        let disk_bytes = source.size_bytes;
        let align_bytes = source.align_bytes.max(target.align_bytes).max(512);
        Self::check_fit(source, target, align_bytes)?;
        if let Some(bitmap) = options.bitmap.as_ref().filter(|bitmap| bitmap.disk_bytes() != disk_bytes) {
            return Err(Error::new(ErrorKind::WrongSize, "use the working bitmap").at(&source.name).because(
                format!("it is for a disk of {} bytes, the source has {disk_bytes}", bitmap.disk_bytes()),
            ));
        }
        let granularity = match &options.bitmap {
            Some(bitmap) => bitmap.granularity(),
            None => {
                options.granularity.unwrap_or_else(|| Granularity::default_for(options.target_cluster_bytes))
            }
        };
        if granularity.bytes() < align_bytes {
            return Err(Error::new(ErrorKind::InvalidArgument, "set the granularity").because(format!(
                "{} bytes is less than the {align_bytes} byte blocks of the devices; use at least {align_bytes}",
                granularity.bytes()
            )));
        }
        let cluster = match options.target_cluster_bytes {
            Some(bytes) if bytes > granularity.bytes() => Some(Granularity::new(bytes)?),
            _ => None,
        };
        let unit = cluster.unwrap_or(granularity).bytes();
        let wanted =
            if options.buf_size_bytes == 0 { DEFAULT_BUF_SIZE_BYTES } else { options.buf_size_bytes };
        let buf_bytes = wanted.next_multiple_of(granularity.bytes()).min(MirrorOptions::MAX_BUF_SIZE_BYTES);
        let request_bytes = RUN_BYTES
            .min(buf_bytes)
            .min(source.max_request_bytes)
            .min(target.max_request_bytes)
            .max(align_bytes);
        // A quarter of the queue is left to others: a request that finds the queue full goes to a kernel worker thread.
        let share = |depth: usize| (depth * 3 / 4 / workers.max(1)).max(1);
        let depth = |shape: &DeviceShape| shape.queue_depth.map_or(DEFAULT_DEPTH, share);
        Ok(Self {
            disk_bytes,
            granularity,
            align_bytes,
            request_bytes: request_bytes - request_bytes % align_bytes,
            // With copy-on-write a run is one cluster, so that "all of it was written" is said per cluster.
            run_bytes: if cluster.is_some() { unit } else { RUN_BYTES.next_multiple_of(unit) },
            hole_bytes: HOLE_BYTES.next_multiple_of(unit),
            zero_bytes: ZERO_BYTES,
            segment_bytes: SEGMENT_BYTES.next_multiple_of(unit),
            zero_unit_bytes: ZERO_UNIT_BYTES.max(align_bytes),
            cluster,
            buf_bytes,
            source_depth: depth(source),
            target_depth: depth(target),
            ask_status: source.has_holes || options.extents.is_some(),
            writes_zeroes: target.writes_zeroes,
        })
    }

    /// Checks the two sizes and the blocks against each other.
    fn check_fit(source: &DeviceShape, target: &DeviceShape, align_bytes: u64) -> Result<()> {
        if target.size_bytes < source.size_bytes {
            return Err(Error::new(ErrorKind::WrongSize, "mirror to").at(&target.name).because(format!(
                "it has {} bytes, the source {} has {}",
                target.size_bytes, source.name, source.size_bytes
            )));
        }
        if !source.size_bytes.is_multiple_of(align_bytes) {
            let strict = if target.align_bytes >= source.align_bytes { target } else { source };
            return Err(Error::new(ErrorKind::WrongSize, "mirror").at(&source.name).because(format!(
                "its size {} is not a multiple of the {align_bytes} byte blocks of {}",
                source.size_bytes, strict.name
            )));
        }
        Ok(())
    }

    /// The chunks that must be owned to write `range`: whole clusters where there are clusters.
    #[must_use]
    pub fn chunks_to_own(&self, range: ByteRange) -> ChunkRange {
        self.granularity.chunks_touched(self.whole_clusters(range))
    }

    /// The chunks that `range` covers wholly; the last chunk of the disk may be short.
    #[must_use]
    pub fn chunks_covered(&self, range: ByteRange) -> ChunkRange {
        let bytes = self.granularity.bytes();
        let end = if range.end() >= self.disk_bytes {
            self.disk_bytes.div_ceil(bytes)
        } else {
            range.end() / bytes
        };
        let start = range.start().div_ceil(bytes);
        ChunkRange::new(start, end.max(start))
    }

    /// `range` grown to whole clusters, cut at the end of the disk; unchanged without clusters.
    #[must_use]
    pub fn whole_clusters(&self, range: ByteRange) -> ByteRange {
        match self.cluster {
            Some(cluster) => range.align_out(cluster.bytes()).intersect(ByteRange::new(0, self.disk_bytes)),
            None => range,
        }
    }

    /// The bytes of `chunks`.
    #[must_use]
    pub fn bytes_of(&self, chunks: ChunkRange) -> ByteRange {
        self.granularity.bytes_of(chunks, self.disk_bytes)
    }

    /// The unit that runs begin and end on: a cluster where there are clusters, else a chunk.
    #[must_use]
    pub fn unit_bytes(&self) -> u64 {
        self.cluster.unwrap_or(self.granularity).bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(size_bytes: u64, align_bytes: u64, max_request_bytes: u64) -> DeviceShape {
        DeviceShape { name: "d".into(), size_bytes, align_bytes, max_request_bytes, ..DeviceShape::default() }
    }

    #[test]
    fn requests_fit_both_devices() {
        let g = Geometry::new(
            &MirrorOptions::default(),
            &shape(MIB, 512, 128 * KIB + 512),
            &shape(MIB, 4096, MIB),
            1,
        );
        let g = g.unwrap();
        assert_eq!((g.request_bytes, g.align_bytes, g.run_bytes), (128 * KIB, 4096, MIB));
    }

    #[test]
    fn devices_that_do_not_fit_are_named() {
        let o = MirrorOptions::default();
        let text = |s, t| Geometry::new(&o, &s, &t, 1).unwrap_err().to_string();
        assert!(text(shape(2 * MIB, 512, MIB), shape(MIB, 512, MIB)).contains("1048576"));
        assert!(text(shape(MIB + 512, 512, MIB), shape(2 * MIB, 4096, MIB)).contains("4096 byte blocks"));
        let fine = MirrorOptions { granularity: Granularity::new(512).ok(), ..MirrorOptions::default() };
        let e = Geometry::new(&fine, &shape(MIB, 512, MIB), &shape(MIB, 4096, MIB), 1).unwrap_err();
        assert!(e.to_string().contains("at least 4096"));
    }

    #[test]
    fn a_cluster_larger_than_the_granularity_makes_runs_of_one_cluster() {
        let o = MirrorOptions { target_cluster_bytes: Some(256 * KIB), ..MirrorOptions::default() };
        let g = Geometry::new(&o, &shape(MIB + 4096, 512, MIB), &shape(MIB + 4096, 512, MIB), 2).unwrap();
        assert_eq!((g.granularity.bytes(), g.run_bytes), (64 * KIB, 256 * KIB));
        assert_eq!(g.whole_clusters(ByteRange::new(MIB + 512, MIB + 1024)), ByteRange::new(MIB, MIB + 4096));
    }

    #[test]
    fn only_chunks_that_are_written_to_their_end_are_covered() {
        let end = MIB + 512;
        let g = Geometry::new(&MirrorOptions::default(), &shape(end, 512, MIB), &shape(end, 512, MIB), 1)
            .unwrap();
        let covered = |start, end| g.chunks_covered(ByteRange::new(start, end));
        assert!(
            covered(0, 65535).is_empty() && covered(1, 65536).is_empty() && covered(512, 1024).is_empty()
        );
        assert_eq!(covered(0, 65536), ChunkRange::new(0, 1));
        assert_eq!(covered(1, 3 * 65536 - 1), ChunkRange::new(1, 2));
        assert_eq!(covered(MIB - 512, end), ChunkRange::new(16, 17), "the last chunk is short");
    }

    #[test]
    fn the_buffer_is_rounded_up_to_the_granularity() {
        let o = MirrorOptions { buf_size_bytes: 1, ..MirrorOptions::default() };
        let g = Geometry::new(&o, &shape(MIB, 512, MIB), &shape(MIB, 512, MIB), 1).unwrap();
        assert_eq!((g.buf_bytes, g.request_bytes), (64 * KIB, 64 * KIB));
    }
}
