//! The pacer with a disk and a guest, closed loop.

use super::ladder::Rung;
use super::model::{Control, Disk, MS, Model};
use super::{Budget, GuestLatency, Pace, Pacer};

const DISKS: [Disk; 5] = [
    Disk {
        name: "loop",
        overhead_ns: 8_000,
        bytes_per_s: 6_000_000_000,
        jitter_ns: 38_000,
        shared: true,
        load: 30_000,
    },
    Disk {
        name: "nvme",
        overhead_ns: 20_000,
        bytes_per_s: 5_000_000_000,
        jitter_ns: 10_000,
        shared: false,
        load: 20_000,
    },
    Disk {
        name: "ssd",
        overhead_ns: 100_000,
        bytes_per_s: 500_000_000,
        jitter_ns: 50_000,
        shared: false,
        load: 3_000,
    },
    Disk {
        name: "san",
        overhead_ns: 500_000,
        bytes_per_s: 200_000_000,
        jitter_ns: 50_000,
        shared: false,
        load: 500,
    },
    Disk {
        name: "hdd",
        overhead_ns: 5_000_000,
        bytes_per_s: 100_000_000,
        jitter_ns: 50_000,
        shared: false,
        load: 60,
    },
];

fn paced(disk: Disk, multiple: f64, seed: u64) -> Model {
    Model::new(disk, Control::Paced(Box::new(Pacer::new(Budget::Baseline(multiple), None))), seed, 10)
}

#[test]
#[ignore]
fn survey() {
    for disk in DISKS {
        let secs = if disk.load < 1000 { 200_000 } else { 20_000 };
        let fixed = |pace, load| {
            let mut m = Model::new(disk, Control::Fixed(pace), 1, 10);
            m.run(secs / 2, load);
            (m.p99(100, secs / 2), m.rate(100, secs / 2))
        };
        let (base, _) = fixed(None, disk.load);
        let (_, full) = fixed(Some(Rung::TOP), 0);
        println!("{} base p99 {} us, full {} MB/s", disk.name, base / 1000, full / 1_000_000);
        let mut rung = Rung::BOTTOM;
        loop {
            let (p99, rate) = fixed(Some(rung), disk.load);
            println!(
                "   {:>6} KiB: p99 x{:.2} rate x{:.2}",
                rung.pace().in_flight_bytes >> 10,
                p99 as f64 / base as f64,
                rate as f64 / full as f64
            );
            if rung == Rung::TOP || p99 > 3 * base {
                break;
            }
            rung = rung.up(1);
        }
        for seed in 0..4 {
            let mut m = paced(disk, 1.5, seed);
            m.run(secs, disk.load);
            let (p99, rate) = (m.p99(secs / 4, secs), m.rate(secs / 4, secs));
            let mut hist = std::collections::BTreeMap::new();
            m.paces
                .iter()
                .filter(|p| p.0 > secs / 4 * MS)
                .for_each(|p| *hist.entry((p.1.in_flight_bytes >> 10).min(99999)).or_insert(0) += 1);
            println!(
                "  paced: p99 x{:.2} rate x{:.2} early p99 x{:.2} {hist:?}",
                p99 as f64 / base as f64,
                rate as f64 / full as f64,
                m.p99(250, secs / 4) as f64 / base as f64
            );
        }
    }
}

fn alone(disk: Disk, load: u64) -> f64 {
    let mut m = Model::new(disk, Control::Fixed(None), 99, 10);
    m.run(2_000_000 / load.min(1000) * 30, load);
    m.p99(0, u64::MAX / MS) as f64
}

#[test]
#[ignore]
fn steps() {
    for disk in DISKS {
        let secs = 4000;
        let loads = [disk.load, disk.load / 3, disk.load * 3 / 2];
        let bases = loads.map(|l| alone(disk, l));
        println!("{} {bases:?}", disk.name);
        for seed in 0..8 {
            let mut m = paced(disk, 1.5, seed);
            m.run(1000, 0);
            let mut t = 1000;
            let mut line = String::new();
            let mut phase = |m: &mut Model, load: u64, base: f64| {
                m.run(secs, load);
                let n = m.log.len();
                line += &format!(
                    " {load}: first 250 {:.1} 250-500 {:.2} 500-1000 {:.2} rest {:.2} @{:.0} |",
                    m.p99(t, t + 250) as f64 / base,
                    m.p99(t + 250, t + 500) as f64 / base,
                    m.p99(t + 500, t + 1000) as f64 / base,
                    m.p99(t + 1000, t + secs) as f64 / base,
                    m.rate(t + 1000, t + secs) as f64 / 1e6
                );
                t += secs;
                let _ = n;
            };
            phase(&mut m, loads[0], bases[0]);
            phase(&mut m, 0, 1.0);
            phase(&mut m, loads[1], bases[1]);
            phase(&mut m, loads[2], bases[2]);
            phase(&mut m, loads[0], bases[0]);
            println!("  {line}");
        }
    }
}
