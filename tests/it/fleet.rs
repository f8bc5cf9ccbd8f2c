//! Files of a small fleet with everything that goes wrong in the field, the same for a seed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The partitions' numbers, as they stand in the names of the files; neither dense nor in the order of their names.
pub(crate) const PARTITIONS: [u32; 3] = [0, 2, 10];
/// 2026-11-23T00:00:00Z, milliseconds.
pub(crate) const DAY_MS: i64 = 1_795_392_000_000;
const TEN_O_CLOCK_MS: i64 = 36_000_000;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub(crate) struct Dice(u64);

impl Dice {
    /// Dice for moments that should differ from run to run; the seed is shown when the test fails.
    pub(crate) fn thrown() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
        let seed = now.subsec_nanos().into();
        eprintln!("seed {seed}");
        Self(seed)
    }

    /// Dice that fall the same for a seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal, sum of twelve.
    fn noise(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// One reading before it is written.
struct Draft {
    id: String,
    device: String,
    sensor: &'static str,
    kind: &'static str,
    unit: &'static str,
    time: String,
    value: String,
    quality: String,
}

fn clock(ms_of_day: i64) -> String {
    let (s, ms) = (ms_of_day / 1000, ms_of_day % 1000);
    format!("2026-11-23T{:02}:{:02}:{:02}.{ms:03}Z", s / 3600, s / 60 % 60, s % 60)
}

impl Draft {
    fn plain(&self) -> String {
        let Self { id, device, sensor, kind, unit, time, value, quality } = self;
        format!(
            r#"{{"id":"{id}","deviceId":"{device}","sensorId":"{sensor}","sensorType":"{kind}","timestamp":"{time}","value":{value},"unit":"{unit}","quality":{quality}}}"#
        )
    }

    /// The same reading or a spoilt one, by the fate thrown.
    fn written(mut self, fate: u64, dice: &mut Dice) -> String {
        match fate {
            0..20 => {
                let whole = self.plain();
                let cut = 1 + dice.below(whole.len() as u64 - 1) as usize;
                whole[..cut].to_owned()
            }
            20..30 => self.plain().replace(&format!(r#""value":{},"#, self.value), ""),
            30..34 => self.plain().replace(&format!(r#""value":{}"#, self.value), &format!(r#""value":"{}""#, self.value)),
            34..38 => self.plain().replace(&format!(r#","unit":"{}""#, self.unit), ""),
            38..40 => "[1, 2".to_owned(),
            40..60 => {
                let bad = [
                    "1970-01-01T00:00:00.000Z",
                    "2099-01-01T00:00:00.000Z",
                    "yesterday",
                    "2026-13-45T10:00:00.000Z",
                    "2026-11-24T00:00:00.000Z",
                ];
                self.time = bad[dice.below(5) as usize].to_owned();
                self.plain()
            }
            60..80 => {
                self.value = ["85.001", "-40.001", "400", "-300.5", "1e9"][dice.below(5) as usize].to_owned();
                self.plain()
            }
            80..100 => {
                self.quality = ["0.499", "0", "0.1"][dice.below(3) as usize].to_owned();
                self.plain()
            }
            100..110 => {
                // Two failures: the first in the order of the rules names the code.
                self.value = "1000".to_owned();
                self.quality = "0.2".to_owned();
                self.plain()
            }
            110..130 => {
                let Self { id, device, sensor, kind, unit, time, value, quality } = &self;
                let device = device.replacen('d', "\\u0064", 1);
                format!(
                    r#"{{ "quality": {quality}, "value" : {value}, "unit": "{unit}", "timestamp": "{time}", "sensorType":"{kind}", "sensorId": "{sensor}" , "deviceId":"{device}", "id": "{id}" }}"#
                )
            }
            130..150 => self.plain().replacen('{', r#"{"meta":{"note":"a \"quoted\" } brace { and \\","list":[1,{"value":5}]},"#, 1),
            150..160 => {
                self.value = ["85", "-40", "85.0", "-40.000", "8.5e1"][dice.below(5) as usize].to_owned();
                self.quality = "0.5".to_owned();
                self.plain()
            }
            _ => self.plain(),
        }
    }
}

/// Writes `p0.ndjson`, `p2.ndjson` and `p10.ndjson` for `devices` devices with two sensors, read once a second for `seconds`
/// seconds, beside files that are not for the pipeline. Gives the number of lines.
pub(crate) fn write(dir: &Path, devices: u64, seconds: i64, seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let mut texts = [const { String::new() }; PARTITIONS.len()];
    let mut lines = 0;
    for tick in 0..seconds {
        for device in 0..devices {
            for (sensor, kind, unit, level, spread) in [("t", "temperature", "Cel", 21.0, 0.4), ("h", "humidity", "%", 55.0, 2.0)] {
                let mut value = level + (device % 7) as f64 + spread * dice.noise();
                if tick > 32 && dice.below(150) == 0 {
                    value += spread * (8.0 + 6.0 * dice.unit());
                }
                let mut ms = TEN_O_CLOCK_MS + tick * 1000 + dice.below(2000) as i64;
                // The first and the last moment that counts; each device has its own clock, so neither makes others late.
                if device % 10 == 3 && tick == 0 {
                    ms = 0;
                } else if device % 10 == 4 && tick == seconds - 1 && sensor == "h" {
                    ms = 86_399_999;
                }
                let value = if dice.below(20) == 0 { format!("{value:.0}") } else { format!("{value:.3}") };
                let quality = format!("0.{}", 60 + dice.below(40));
                let draft =
                    Draft { id: format!("r{lines}"), device: format!("d{device}"), sensor, kind, unit, time: clock(ms), value, quality };
                let fate = dice.below(1000);
                let text = &mut texts[(device % 3) as usize];
                writeln!(text, "{}", draft.written(fate, &mut dice)).expect("a string grows");
                lines += 1;
            }
        }
    }
    // One file ends without a line feed.
    texts[1].pop();
    for (number, text) in PARTITIONS.iter().zip(texts) {
        fs::write(dir.join(format!("p{number}.ndjson")), text).expect("the input is written");
    }
    fs::write(dir.join("truth.json"), "{}").expect("the input is written");
    fs::write(dir.join("x1.ndjson"), "not for us\n").expect("the input is written");
    lines
}
