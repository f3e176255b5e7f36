//! The calls that a run is made of, as the fuzzer's bytes say. The order is part of the corpus: add at the end.
use arbitrary::Arbitrary;

/// A call.
#[derive(Arbitrary, Debug)]
pub enum Call {
    NewQueue { depth: u8, flags: u8, staging: u16 },
    DropQueue,
    Read { at: u16, len: u16, shift: u8, flags: u8 },
    Write { at: u16, len: u16, shift: u8, flags: u8 },
    Vector { at: u16, lens: [u8; 3], write: bool, count: i8 },
    Zeroes { at: u64, len: u64, flags: u8 },
    Discard { at: u16, len: u16, flags: u8 },
    Flush { flags: u8 },
    Submit,
    Poll,
    Process { min: i8, max: i8 },
    Begin { at: u64, len: u64, kind: u8 },
    End { result: i8, twice: bool },
    Spoil { word: u8, bits: u64 },
    NewBitmap { name: u8, flags: u8, granularity: u64 },
    DropBitmap,
    Bitmap { verb: u8, at: u64, len: u64, most: u64 },
    Mirror(Mirror),
    DropJob,
    Job { verb: u8, number: u64 },
    Event,
    MapMemory { at: u16, len: u16 },
    UnmapMemory { at: u16, len: u16 },
    Facts,
    CloseQueue { wait: u8 },
}

/// What a mirror is started with.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Mirror {
    pub flags: u16,
    pub sync: u8,
    pub mode: u8,
    pub errors: [u8; 2],
    pub speed: u32,
    pub pause: u64,
    pub granularity: u32,
    pub budget: [u8; 2],
}
