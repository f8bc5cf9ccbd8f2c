//! What the simulated devices are: first-order physics with sensor noise, stepped in event time. Pure.

use std::f64::consts::TAU;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rng::Rng;

const DAY_S: f64 = 86_400.0;

/// Most sensors a kind of device has.
pub(super) const MAX_SENSORS: usize = 4;

/// Longest step of the physics in seconds; longer intervals are divided.
const LONGEST_STEP_S: f64 = 10.0;

/// A kind of simulated device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A freezer: compressor cycles, door openings by day, the warmth of the room.
    Freezer,
    /// A pump: pressure and flow follow a daily load, the bearing's vibration grows with wear.
    Pump,
    /// A weather station: temperature follows the day, humidity follows temperature.
    Ambient,
}

/// A sensor of a kind of device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SensorKind {
    /// Sensor id and type.
    pub name: &'static str,
    /// Unit as in SenML (RFC 8428).
    pub unit: &'static str,
    /// Digits after the point.
    pub decimals: usize,
    /// About one standard deviation of healthy behaviour over minutes, in `unit`: faults are sized by it.
    pub spread: f64,
    /// Where a drift fault leads, in `unit`.
    pub limit: f64,
}

impl DeviceKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Freezer, Self::Pump, Self::Ambient];

    /// Name, as in device ids.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Freezer => "freezer",
            Self::Pump => "pump",
            Self::Ambient => "ambient",
        }
    }

    /// Its sensors.
    #[must_use]
    pub fn sensors(self) -> &'static [SensorKind] {
        match self {
            Self::Freezer => &[
                SensorKind { name: "temperature", unit: "Cel", decimals: 2, spread: 0.8, limit: -5.0 },
                SensorKind { name: "power", unit: "W", decimals: 1, spread: 55.0, limit: 900.0 },
            ],
            Self::Pump => &[
                SensorKind { name: "pressure", unit: "bar", decimals: 3, spread: 0.06, limit: 2.0 },
                SensorKind { name: "flow", unit: "m3/h", decimals: 2, spread: 0.8, limit: 8.0 },
                SensorKind { name: "vibration", unit: "mm/s", decimals: 3, spread: 0.06, limit: 7.1 },
                SensorKind { name: "temperature", unit: "Cel", decimals: 2, spread: 0.5, limit: 85.0 },
            ],
            Self::Ambient => &[
                SensorKind { name: "temperature", unit: "Cel", decimals: 2, spread: 0.4, limit: 55.0 },
                SensorKind { name: "humidity", unit: "%RH", decimals: 1, spread: 1.6, limit: 5.0 },
            ],
        }
    }
}

/// What goes on inside one device.
#[derive(Clone, Debug)]
pub(super) struct Body {
    kind: DeviceKind,
    /// Differs from device to device: set point, size or site, in -1..1.
    trait_: f64,
    /// Freezer: air temperature. Ambient: slow weather. Pump: slow deviation of the load.
    slow: f64,
    /// Freezer: compressor runs.
    on: bool,
    /// Freezer: seconds the door stays open. Pump: seconds of service.
    seconds: f64,
}

impl Body {
    pub(super) fn new(kind: DeviceKind, rng: &mut Rng) -> Self {
        let trait_ = rng.between(-1.0, 1.0);
        let slow = if kind == DeviceKind::Freezer { -20.0 + trait_ + rng.between(-0.8, 0.8) } else { 0.0 };
        let seconds = if kind == DeviceKind::Pump { rng.between(0.0, 60.0 * DAY_S) } else { 0.0 };
        Self { kind, trait_, slow, on: rng.unit() < 0.3, seconds }
    }

    /// Moves on by `dt_s` seconds to `now_s` (seconds since the epoch), then reads all sensors.
    pub(super) fn advance(&mut self, dt_s: f64, now_s: f64, rng: &mut Rng) -> [f64; MAX_SENSORS] {
        let steps = (dt_s / LONGEST_STEP_S).ceil().max(1.0);
        let step = dt_s / steps;
        let mut at = now_s - dt_s;
        for _ in 0..steps as u64 {
            at += step;
            match self.kind {
                DeviceKind::Freezer => self.step_freezer(step, at, rng),
                DeviceKind::Pump => self.step_pump(step, rng),
                DeviceKind::Ambient => self.slow = wander(self.slow, step, 1_800.0, 0.4, rng),
            }
        }
        self.read(now_s, rng)
    }

    /// Air warms towards the room (about 7 K/h), the compressor cools by 21 K/h with 2 K of hysteresis, an open door
    /// lets in 4 K a minute. Doors open twice an hour by day.
    fn step_freezer(&mut self, dt: f64, now_s: f64, rng: &mut Rng) {
        let target = -20.0 + self.trait_;
        let room = 22.0 + 2.0 * day_wave(now_s, 9.0);
        let hour = now_s.rem_euclid(DAY_S) / 3_600.0;
        let by_day = (7.0..20.0).contains(&hour);
        if self.seconds <= 0.0 && by_day && rng.unit() < dt * 2.0 / 3_600.0 {
            self.seconds = rng.between(8.0, 30.0);
        }
        let mut rate = (room - self.slow) / 21_600.0;
        if self.seconds > 0.0 {
            rate += (room - self.slow) / 600.0 * (self.seconds / dt).min(1.0);
            self.seconds -= dt;
        }
        if self.on {
            rate -= 0.006;
        }
        self.slow += rate * dt;
        if self.slow > target + 1.0 {
            self.on = true;
        } else if self.slow < target - 1.0 {
            self.on = false;
        }
    }

    fn step_pump(&mut self, dt: f64, rng: &mut Rng) {
        self.seconds += dt;
        self.slow = wander(self.slow, dt, 600.0, 0.02, rng);
    }

    fn read(&self, now_s: f64, rng: &mut Rng) -> [f64; MAX_SENSORS] {
        match self.kind {
            DeviceKind::Freezer => {
                let power = if self.on { 118.0 + 2.0 * self.trait_ + 2.0 * rng.noise() } else { 3.0 + 0.3 * rng.noise() };
                [self.slow + 0.05 * rng.noise(), power, 0.0, 0.0]
            }
            DeviceKind::Pump => {
                let load = 0.7 + 0.15 * day_wave(now_s, 8.0) + self.slow;
                let wear = self.seconds / DAY_S / 100.0; // one per cent of the healthy vibration a day
                let pressure = 6.0 + 0.2 * self.trait_ - 1.5 * load * load + 0.015 * rng.noise();
                let flow = 40.0 * load + 0.2 * rng.noise();
                let vibration = (1.4 + 0.2 * self.trait_ + 0.5 * load) * (1.0 + wear) + 0.03 * rng.noise();
                let temperature = 32.0 + 2.0 * self.trait_ + 18.0 * load + 6.0 * wear + 0.1 * rng.noise();
                [pressure, flow, vibration, temperature]
            }
            DeviceKind::Ambient => {
                let temperature = 14.0 + 2.0 * self.trait_ + 6.0 * day_wave(now_s, 9.0) + self.slow;
                let humidity = (62.0 - 2.2 * (temperature - 14.0) + 0.4 * rng.noise()).clamp(5.0, 100.0);
                [temperature + 0.05 * rng.noise(), humidity, 0.0, 0.0]
            }
        }
    }
}

/// A sine of one day that rises through zero at `hour` UTC.
fn day_wave(now_s: f64, hour: f64) -> f64 {
    (TAU * (now_s.rem_euclid(DAY_S) / DAY_S - hour / 24.0)).sin()
}

/// One step of an Ornstein-Uhlenbeck process around zero with relaxation time `tau_s` and deviation `sd`.
fn wander(x: f64, dt: f64, tau_s: f64, sd: f64, rng: &mut Rng) -> f64 {
    let keep = (-dt / tau_s).exp();
    x * keep + sd * (1.0 - keep * keep).sqrt() * rng.noise()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Minimum, maximum and mean of each sensor over `days`, read every `dt` seconds.
    fn profile(kind: DeviceKind, days: f64, dt: f64) -> Vec<(f64, f64, f64)> {
        let mut rng = Rng::new(11, 0);
        let mut body = Body::new(kind, &mut rng);
        let rows: Vec<_> = (1..=(days * DAY_S / dt) as u64).map(|n| body.advance(dt, n as f64 * dt, &mut rng)).collect();
        let column = |s: usize| rows.iter().map(move |row| row[s]);
        (0..kind.sensors().len())
            .map(|s| (column(s).fold(f64::MAX, f64::min), column(s).fold(f64::MIN, f64::max), column(s).sum::<f64>() / rows.len() as f64))
            .collect()
    }

    #[test]
    fn a_freezer_cycles_around_its_set_point_at_any_step() {
        for dt in [1.0, 10.0, 60.0] {
            let sensors = profile(DeviceKind::Freezer, 3.0, dt);
            let (low, high, mean) = sensors[0];
            assert!((-23.0..=-19.5).contains(&low) && (-20.0..=-10.0).contains(&high), "{dt}: {low} {high}");
            assert!((mean + 20.0).abs() < 1.8, "{dt}: {mean}");
            let (off, on, mean) = sensors[1];
            assert!(off < 5.0 && on > 110.0 && (20.0..=70.0).contains(&mean), "{dt}: {off} {on} {mean}");
        }
    }

    #[test]
    fn a_pump_stays_in_its_bounds_and_wears() {
        let sensors = profile(DeviceKind::Pump, 2.0, 30.0);
        for (sensor, bounds) in sensors.iter().zip([(4.0, 6.2), (18.0, 40.0), (1.2, 4.0), (38.0, 56.0)]) {
            assert!(sensor.0 > bounds.0 && sensor.1 < bounds.1, "{sensors:?}");
        }
        let later = profile(DeviceKind::Pump, 40.0, 600.0);
        assert!(later[2].2 > sensors[2].2 * 1.08, "vibration must grow: {} {}", sensors[2].2, later[2].2);
    }

    #[test]
    fn the_weather_has_a_daily_swing() {
        let sensors = profile(DeviceKind::Ambient, 3.0, 60.0);
        let swing = sensors[0].1 - sensors[0].0;
        assert!((10.0..18.0).contains(&swing), "{swing}");
        assert!(sensors[1].0 >= 5.0 && sensors[1].1 <= 100.0);
    }
}
