//! A list of extents in place of block status, as `qemu-img map` gives it for the topmost layer.

use crate::device::{Extent, ExtentKind};
use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteRange;

/// Extents in order without overlap; what lies between them is absent.
///
/// Neighbours of one kind are one extent here, whatever the list says: it cuts also where what lies below the topmost layer
/// changes, or where data goes on elsewhere in the file. A cut inside a cluster would look as if the layer held a part of it.
#[derive(Clone, Debug, Default)]
pub struct ExtentMap {
    /// Sorted, not empty, not overlapping, none absent, no neighbours of one kind.
    extents: Vec<Extent>,
}

impl ExtentMap {
    /// Takes a list in the order of its offsets.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when extents overlap or are out of order.
    pub fn from_extents(mut extents: Vec<Extent>) -> Result<Self> {
        extents.retain(|e| !e.range.is_empty());
        for pair in extents.windows(2) {
            if let [a, b] = pair
                && a.range.end() > b.range.start()
            {
                return Err(Error::new(ErrorKind::InvalidArgument, "use an extent list")
                    .because(format!("{} and {} overlap or are out of order", a.range, b.range)));
            }
        }
        extents.retain(|e| e.kind != ExtentKind::Absent);
        extents.dedup_by(|next, last| {
            let goes_on = next.kind == last.kind && next.range.start() == last.range.end();
            if goes_on {
                last.range = ByteRange::new(last.range.start(), next.range.end());
            }
            goes_on
        });
        Ok(Self { extents })
    }

    /// What lies at `offset`, to where it changes.
    #[must_use]
    pub fn status(&self, offset: u64) -> Extent {
        let at = self.extents.partition_point(|e| e.range.end() <= offset);
        match self.extents.get(at) {
            Some(e) if e.range.start() <= offset => {
                Extent { range: ByteRange::new(offset, e.range.end()), kind: e.kind }
            }
            Some(e) => Extent { range: ByteRange::new(offset, e.range.start()), kind: ExtentKind::Absent },
            None => Extent { range: ByteRange::new(offset, u64::MAX), kind: ExtentKind::Absent },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64, kind: ExtentKind) -> Extent {
        Extent { range: ByteRange::new(start, end), kind }
    }

    #[test]
    fn gaps_and_the_end_are_absent() {
        let map =
            ExtentMap::from_extents(vec![extent(10, 20, ExtentKind::Data), extent(30, 40, ExtentKind::Zero)])
                .unwrap();
        assert_eq!(map.status(0), extent(0, 10, ExtentKind::Absent));
        assert_eq!(map.status(15), extent(15, 20, ExtentKind::Data));
        assert_eq!(map.status(20), extent(20, 30, ExtentKind::Absent));
        assert_eq!(map.status(39), extent(39, 40, ExtentKind::Zero));
        assert_eq!(map.status(40).kind, ExtentKind::Absent);
    }

    /// A layer that seems to end inside a cluster makes all of the cluster be copied.
    #[test]
    fn only_a_change_of_kind_ends_an_extent() {
        use ExtentKind::{Absent, Data, Zero};
        let map = ExtentMap::from_extents(vec![
            extent(0, 10, Absent),
            extent(10, 20, Absent),
            extent(30, 40, Data),
            extent(40, 50, Data),
            extent(50, 60, Zero),
            extent(60, 70, Zero),
        ])
        .unwrap();
        assert_eq!(map.status(5), extent(5, 30, Absent));
        assert_eq!(map.status(35), extent(35, 50, Data));
        assert_eq!(map.status(50), extent(50, 70, Zero));
    }

    #[test]
    fn overlapping_extents_are_refused() {
        assert!(
            ExtentMap::from_extents(vec![extent(0, 10, ExtentKind::Data), extent(5, 20, ExtentKind::Data)])
                .is_err()
        );
        assert!(
            ExtentMap::from_extents(vec![extent(10, 20, ExtentKind::Data), extent(0, 5, ExtentKind::Data)])
                .is_err()
        );
    }
}
