//! Units of measurement: names from UCUM and SenML (RFC 8428, section 12.1) with common aliases, and exact conversion within a
//! dimension. `C` and `F` are temperatures here; SenML's coulomb and farad are not known.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A unit of the table: `base = (x + offset) * numerator / denominator`.
#[derive(Debug, PartialEq)]
pub struct Unit {
    /// What it measures.
    pub dimension: &'static str,
    /// The name used in columns.
    pub name: &'static str,
    aliases: &'static [&'static str],
    offset: f64,
    numerator: f64,
    denominator: f64,
}

const fn unit(dimension: &'static str, name: &'static str, aliases: &'static [&'static str], numerator: f64, denominator: f64) -> Unit {
    Unit { dimension, name, aliases, offset: 0.0, numerator, denominator }
}

/// Factors are fractions of numbers that are exact in binary wherever the definition allows it.
static UNITS: &[Unit] = &[
    unit("temperature", "Cel", &["C", "°C", "℃", "degC", "deg_c", "celsius", "degree celsius", "degrees celsius", "centigrade"], 1.0, 1.0),
    Unit {
        dimension: "temperature",
        name: "[degF]",
        aliases: &["F", "°F", "℉", "degF", "deg_f", "fahrenheit", "degree fahrenheit", "degrees fahrenheit"],
        offset: -32.0,
        numerator: 5.0,
        denominator: 9.0,
    },
    Unit { dimension: "temperature", name: "K", aliases: &["kelvin", "°K", "degK"], offset: -273.15, numerator: 1.0, denominator: 1.0 },
    unit("pressure", "Pa", &["pascal"], 1.0, 1.0),
    unit("pressure", "mPa", &["millipascal"], 1.0, 1e3),
    unit("pressure", "hPa", &["hectopascal"], 100.0, 1.0),
    unit("pressure", "kPa", &["kilopascal"], 1e3, 1.0),
    unit("pressure", "MPa", &["megapascal"], 1e6, 1.0),
    unit("pressure", "bar", &["bars"], 1e5, 1.0),
    unit("pressure", "mbar", &["millibar"], 100.0, 1.0),
    unit("pressure", "[psi]", &["psi", "lbf/in2"], 6_894.757_293_168_361, 1.0),
    unit("pressure", "atm", &["atmosphere"], 101_325.0, 1.0),
    unit("pressure", "mm[Hg]", &["mmHg"], 133.322_387_415, 1.0),
    unit("pressure", "[in_i'Hg]", &["inHg"], 3_386.388_640_341, 1.0),
    unit("voltage", "V", &["volt", "volts"], 1.0, 1.0),
    unit("voltage", "uV", &["µV", "μV", "microvolt"], 1.0, 1e6),
    unit("voltage", "mV", &["millivolt", "millivolts"], 1.0, 1e3),
    unit("voltage", "kV", &["kilovolt"], 1e3, 1.0),
    unit("current", "A", &["amp", "amps", "ampere", "amperes"], 1.0, 1.0),
    unit("current", "uA", &["µA", "μA", "microampere"], 1.0, 1e6),
    unit("current", "mA", &["milliamp", "milliampere"], 1.0, 1e3),
    unit("current", "kA", &["kiloampere"], 1e3, 1.0),
    unit("power", "W", &["watt", "watts"], 1.0, 1.0),
    unit("power", "mW", &["milliwatt"], 1.0, 1e3),
    unit("power", "kW", &["kilowatt", "kilowatts"], 1e3, 1.0),
    unit("power", "MW", &["megawatt"], 1e6, 1.0),
    unit("power", "[HP]", &["hp", "horsepower"], 745.699_871_582_270_2, 1.0),
    unit("apparent power", "VA", &["voltampere"], 1.0, 1.0),
    unit("apparent power", "kVA", &[], 1e3, 1.0),
    unit("reactive power", "var", &[], 1.0, 1.0),
    unit("reactive power", "kvar", &[], 1e3, 1.0),
    unit("energy", "J", &["joule", "joules"], 1.0, 1.0),
    unit("energy", "kJ", &["kilojoule"], 1e3, 1.0),
    unit("energy", "MJ", &["megajoule"], 1e6, 1.0),
    unit("energy", "Wh", &["W.h", "watthour"], 3_600.0, 1.0),
    unit("energy", "kWh", &["kW.h", "kilowatthour"], 3_600_000.0, 1.0),
    unit("energy", "MWh", &["MW.h", "megawatthour"], 3_600_000_000.0, 1.0),
    unit("charge", "A.h", &["Ah"], 1.0, 1.0),
    unit("charge", "mA.h", &["mAh"], 1.0, 1e3),
    unit("resistance", "Ohm", &["\u{3a9}", "\u{2126}", "ohms"], 1.0, 1.0),
    unit("resistance", "mOhm", &["mΩ"], 1.0, 1e3),
    unit("resistance", "kOhm", &["kΩ"], 1e3, 1.0),
    unit("resistance", "MOhm", &["MΩ"], 1e6, 1.0),
    unit("frequency", "Hz", &["1/s", "hertz"], 1.0, 1.0),
    unit("frequency", "kHz", &["kilohertz"], 1e3, 1.0),
    unit("frequency", "MHz", &["megahertz"], 1e6, 1.0),
    unit("frequency", "GHz", &["gigahertz"], 1e9, 1.0),
    unit("frequency", "1/min", &["rpm", "rev/min", "r/min", "beat/min"], 1.0, 60.0),
    unit("length", "m", &["metre", "meter", "metres", "meters"], 1.0, 1.0),
    unit("length", "um", &["µm", "μm", "micrometre", "micrometer", "micron"], 1.0, 1e6),
    unit("length", "mm", &["millimetre", "millimeter"], 1.0, 1e3),
    unit("length", "cm", &["centimetre", "centimeter"], 1.0, 100.0),
    unit("length", "km", &["kilometre", "kilometer"], 1e3, 1.0),
    unit("length", "[in_i]", &["in", "inch", "inches"], 254.0, 1e4),
    unit("length", "[ft_i]", &["ft", "foot", "feet"], 3_048.0, 1e4),
    unit("length", "[yd_i]", &["yd", "yard", "yards"], 9_144.0, 1e4),
    unit("length", "[mi_i]", &["mi", "mile", "miles"], 1_609_344.0, 1e3),
    unit("mass", "kg", &["kilogram", "kilograms"], 1.0, 1.0),
    unit("mass", "g", &["gram", "grams"], 1.0, 1e3),
    unit("mass", "mg", &["milligram"], 1.0, 1e6),
    unit("mass", "t", &["tonne", "tonnes"], 1e3, 1.0),
    unit("mass", "[lb_av]", &["lb", "lbs", "pound", "pounds"], 45_359_237.0, 1e8),
    unit("mass", "[oz_av]", &["oz", "ounce", "ounces"], 45_359_237.0, 16e8),
    unit("time", "s", &["sec", "second", "seconds"], 1.0, 1.0),
    unit("time", "us", &["µs", "μs", "microsecond"], 1.0, 1e6),
    unit("time", "ms", &["millisecond", "milliseconds"], 1.0, 1e3),
    unit("time", "min", &["minute", "minutes"], 60.0, 1.0),
    unit("time", "h", &["hour", "hours"], 3_600.0, 1.0),
    unit("time", "d", &["day", "days"], 86_400.0, 1.0),
    unit("volume", "l", &["L", "litre", "liter", "litres", "liters"], 1.0, 1e3),
    unit("volume", "ml", &["mL", "millilitre", "milliliter"], 1.0, 1e6),
    unit("volume", "m3", &["m³", "m^3"], 1.0, 1.0),
    unit("volume", "[gal_us]", &["gal", "gallon", "gallons"], 3_785_411_784.0, 1e12),
    unit("flow", "m3/s", &["m³/s", "m^3/s"], 1.0, 1.0),
    unit("flow", "m3/min", &["m³/min"], 1.0, 60.0),
    unit("flow", "m3/h", &["m³/h", "m^3/h", "cbm/h"], 1.0, 3_600.0),
    unit("flow", "l/s", &["L/s", "lps"], 1.0, 1e3),
    unit("flow", "l/min", &["L/min", "lpm"], 1.0, 60e3),
    unit("flow", "l/h", &["L/h"], 1.0, 3_600e3),
    unit("flow", "[gal_us]/min", &["gal/min", "gpm"], 3_785_411_784.0, 60e12),
    unit("speed", "m/s", &["mps"], 1.0, 1.0),
    unit("speed", "mm/s", &[], 1.0, 1e3),
    unit("speed", "km/h", &["kmh", "kph"], 10.0, 36.0),
    unit("speed", "[mi_i]/h", &["mph", "mi/h"], 1_609_344.0, 3_600e3),
    unit("speed", "[kn_i]", &["kn", "knot", "knots"], 1_852.0, 3_600.0),
    unit("acceleration", "m/s2", &["m/s²", "m/s^2"], 1.0, 1.0),
    unit("acceleration", "mm/s2", &["mm/s²"], 1.0, 1e3),
    unit("acceleration", "[g]", &["g0", "gn", "gee"], 980_665.0, 1e5),
    unit("force", "N", &["newton", "newtons"], 1.0, 1.0),
    unit("force", "kN", &["kilonewton"], 1e3, 1.0),
    unit("torque", "N.m", &["Nm", "N m"], 1.0, 1.0),
    unit("fraction", "/", &["1", "ratio", "fraction"], 1.0, 1.0),
    unit("fraction", "%", &["percent", "pct"], 1.0, 100.0),
    unit("fraction", "[ppm]", &["ppm"], 1.0, 1e6),
    unit("fraction", "[ppb]", &["ppb"], 1.0, 1e9),
    unit("humidity", "%RH", &["%rh", "% RH", "percentRH"], 1.0, 1.0),
    unit("concentration", "kg/m3", &["kg/m³"], 1.0, 1.0),
    unit("concentration", "g/m3", &["g/m³"], 1.0, 1e3),
    unit("concentration", "mg/m3", &["mg/m³"], 1.0, 1e6),
    unit("concentration", "ug/m3", &["µg/m3", "µg/m³", "μg/m³", "ug/m³"], 1.0, 1e9),
    unit("conductivity", "S/m", &[], 1.0, 1.0),
    unit("conductivity", "mS/cm", &[], 1.0, 10.0),
    unit("conductivity", "uS/cm", &["µS/cm", "μS/cm"], 1.0, 1e4),
    unit("angle", "rad", &["radian", "radians"], 1.0, 1.0),
    unit("angle", "deg", &["°", "degree", "degrees"], std::f64::consts::PI, 180.0),
    unit("illuminance", "lx", &["lux"], 1.0, 1.0),
    unit("irradiance", "W/m2", &["W/m²", "W/m^2"], 1.0, 1.0),
    unit("irradiance", "kW/m2", &["kW/m²"], 1e3, 1.0),
    unit("level", "dB", &["decibel"], 1.0, 1.0),
    unit("power level", "dBm", &[], 1.0, 1.0),
    unit("acidity", "pH", &["[pH]"], 1.0, 1.0),
    unit("count", "count", &["counts", "pcs"], 1.0, 1.0),
];

/// Units by name and alias.
static EXACT: LazyLock<HashMap<&'static str, &'static Unit>> =
    LazyLock::new(|| UNITS.iter().flat_map(|unit| unit.names().map(move |name| (name, unit))).collect());

/// Units by lower-case name of three letters or more; `None` where that means several.
static FOLDED: LazyLock<HashMap<String, Option<&'static Unit>>> = LazyLock::new(|| {
    let mut folded: HashMap<String, Option<&'static Unit>> = HashMap::new();
    for unit in UNITS {
        for name in unit.names().filter(|name| name.chars().count() >= 3) {
            let entry = folded.entry(name.to_lowercase()).or_insert(Some(unit));
            *entry = entry.filter(|known| *known == unit);
        }
    }
    folded
});

impl Unit {
    /// Aliases, then the name.
    fn names(&'static self) -> impl Iterator<Item = &'static str> {
        self.aliases.iter().chain([&self.name]).copied()
    }
}

/// The unit called `name`, blanks around it aside. Letter case counts where it must (`mW`, `MW`), so `mpa` is unknown.
#[must_use]
pub fn find(name: &str) -> Option<&'static Unit> {
    let name = name.trim();
    EXACT.get(name).copied().or_else(|| FOLDED.get(&name.to_lowercase()).copied().flatten())
}

/// Names of all units, for suggestions.
pub fn names() -> impl Iterator<Item = &'static str> {
    UNITS.iter().flat_map(Unit::names)
}

/// A linear conversion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conversion {
    before: f64,
    numerator: f64,
    denominator: f64,
    after: f64,
}

impl Conversion {
    /// From one unit into another of the same dimension; `None` if the dimensions differ.
    #[must_use]
    pub fn between(from: &Unit, to: &Unit) -> Option<Self> {
        (from.dimension == to.dimension).then_some(Self {
            before: from.offset,
            numerator: from.numerator * to.denominator,
            denominator: from.denominator * to.numerator,
            after: to.offset,
        })
    }

    /// The value in the other unit.
    #[must_use]
    pub fn apply(&self, value: f64) -> f64 {
        (value + self.before) * self.numerator / self.denominator - self.after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(value: f64, from: &str, to: &str) -> Option<f64> {
        Some(Conversion::between(find(from)?, find(to)?)?.apply(value))
    }

    #[test]
    fn known_values_are_exact() {
        let cases = [
            (212.0, "F", "Cel", 100.0),
            (32.0, "fahrenheit", "°C", 0.0),
            (-40.0, "°F", "celsius", -40.0),
            (37.0, "Cel", "degF", 98.6),
            (0.0, "Cel", "K", 273.15),
            (373.15, "K", "Cel", 100.0),
            (1.0, "bar", "Pa", 100_000.0),
            (1013.25, "mbar", "atm", 1.0),
            (1.0, "atm", "kPa", 101.325),
            (1.0, "psi", "Pa", 6_894.757_293_168_361),
            (1500.0, "mV", "V", 1.5),
            (0.25, "A", "mA", 250.0),
            (2.5, "kW", "W", 2500.0),
            (1.0, "kWh", "MJ", 3.6),
            (1200.0, "rpm", "Hz", 20.0),
            (12.0, "in", "ft", 1.0),
            (1.0, "mile", "km", 1.609_344),
            (1.0, "lb", "kg", 0.453_592_37),
            (36.0, "m3/h", "l/s", 10.0),
            (1.0, "gpm", "l/min", 3.785_411_784),
            (36.0, "km/h", "m/s", 10.0),
            (50.0, "%", "/", 0.5),
            (1.0, "%", "ppm", 10_000.0),
            (1.0, "[g]", "m/s2", 9.806_65),
            (180.0, "deg", "rad", std::f64::consts::PI),
            (7.5, "pH", "pH", 7.5),
        ];
        for (value, from, to, expected) in cases {
            assert_eq!(convert(value, from, to), Some(expected), "{value} {from} in {to}");
        }
    }

    #[test]
    fn there_and_back_is_the_same() {
        for from in UNITS {
            for to in UNITS.iter().filter(|to| to.dimension == from.dimension) {
                let there = Conversion::between(from, to).unwrap().apply(12.5);
                let back = Conversion::between(to, from).unwrap().apply(there);
                assert!((back - 12.5).abs() <= 1e-11, "{} to {}: {back}", from.name, to.name);
            }
        }
    }

    #[test]
    fn names_mean_one_unit_and_dimensions_do_not_mix() {
        let mut seen = HashMap::new();
        for unit in UNITS {
            for name in unit.names() {
                assert_eq!(seen.insert(name, unit.name), None, "{name} is twice in the table");
                assert_eq!(find(name).map(|u| u.name), Some(unit.name));
            }
        }
        assert_eq!(convert(1.0, "V", "A"), None);
        assert_eq!(
            (find("bogus"), find(""), find("mpa"), find("mW").map(|u| u.name), find("MW").map(|u| u.name)),
            (None, None, None, Some("mW"), Some("MW"))
        );
        assert_eq!((find("CELSIUS").map(|u| u.name), find(" KPA ").map(|u| u.name)), (Some("Cel"), Some("kPa")));
    }
}
