//! The shape of a source's objects: a producer sends the same keys in the same order again and again, so that only the values differ.
//!
//! A shape is learned from an object that was read the long way. An object that fits it byte for byte between its values, and whose
//! values are plain (no escapes, no exponents), is read without looking for keys, commas or ends of names. Whatever does not fit takes
//! the long way, so that nothing is decoded differently.

use super::literal::Literal;
use super::object::{Member, Target};
use super::parts::{Checks, Plain, Role, Time, time_text};
use super::rows::{Columns, Value};
use super::scan::{Cursor, Scan};
use super::time::Times;

/// Objects in a row that do not fit before another shape is learned; it doubles with each, so that a mixture costs little.
const FIRST_PATIENCE: u32 = 4;
const LAST_PATIENCE: u32 = 4096;
/// Longest object and most values that are learned.
const LONGEST: usize = 4096;
const MOST_STEPS: usize = 64;

/// A value, and the text before it.
#[derive(Clone, Debug)]
struct Step {
    /// From the end of the value before: for a string without its closing quote, and up to behind the opening quote of this one.
    before: Literal,
    /// `None`: a member nobody asked for.
    role: Option<Role>,
    quoted: bool,
}

/// What was learned of a source's objects.
#[derive(Debug)]
pub(super) struct Shape {
    steps: Vec<Step>,
    end: Literal,
    misses: u32,
    patience: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { steps: Vec::new(), end: Literal::default(), misses: FIRST_PATIENCE, patience: FIRST_PATIENCE }
    }
}

impl Shape {
    #[cfg(test)]
    pub(super) fn misses(&self) -> u32 {
        self.misses
    }

    /// Reads the object at `cursor` if it fits and nothing follows it. Otherwise nothing is changed but the count of misses.
    #[inline]
    pub(super) fn read<'a>(&mut self, cursor: &mut Cursor<'a>, checks: &Checks, times: &mut Times, names: &Columns) -> Option<Plain<'a>> {
        if self.steps.is_empty() {
            self.misses = self.misses.saturating_add(1);
            return None;
        }
        let mut here = cursor.clone();
        let found = self.fit(&mut here, checks, times, names);
        if found.is_some() {
            self.misses = 0;
            *cursor = here;
        } else {
            self.misses += 1;
        }
        found
    }

    #[inline(always)]
    fn fit<'a>(&self, cursor: &mut Cursor<'a>, checks: &Checks, times: &mut Times, names: &Columns) -> Option<Plain<'a>> {
        let mut found = Plain::default();
        for step in &self.steps {
            if !cursor.eat_literal(&step.before) {
                return None;
            }
            match (step.role, step.quoted) {
                (Some(Role::Device), true) => found.device = Some(name(cursor, names.device.expected(), Role::Device, &mut found.expected)),
                (Some(Role::Sensor), true) => found.sensor = Some(name(cursor, names.sensor.expected(), Role::Sensor, &mut found.expected)),
                (Some(Role::SensorType), true) => {
                    found.sensor_type = Some(name(cursor, names.sensor_type.expected(), Role::SensorType, &mut found.expected));
                }
                (Some(Role::Unit), true) => found.unit = Some(name(cursor, names.unit.expected(), Role::Unit, &mut found.expected)),
                (Some(Role::Id), true) => found.id = Some(cursor.until_special()),
                (Some(Role::Timestamp), true) => match time_text(cursor.time_or_text(), times) {
                    time @ Time::At(_) => found.time = Some(time),
                    Time::Unreadable => return None,
                },
                (Some(Role::Value), true) => found.value = Some(Value::Text(cursor.until_special().into())),
                (Some(Role::Value), false) => found.value = Some(Value::Number(cursor.plain_number()?)),
                (Some(Role::Quality), false) => found.quality = Some(checks.quality_score(cursor.plain_number()?)),
                (None, true) => drop(cursor.until_special()),
                (None, false) => drop(cursor.plain_number()?),
                // Such a step is never learned.
                _ => return None,
            }
        }
        (cursor.eat_literal(&self.end) && cursor.at_end()).then_some(found)
    }

    /// Told of an object that was read the long way and is sound: learns its shape when the one before does not hold any more.
    #[cold]
    pub(super) fn learn(&mut self, text: &[u8], start: usize, members: &[Member], keep_unknown: bool) {
        if self.misses < self.patience {
            return;
        }
        let patience = (self.patience * 2).min(LAST_PATIENCE);
        let mut walk = Walk { cursor: Cursor::new(text, start), from: start, steps: Vec::new(), keep_unknown };
        let learned = walk.object(members).is_ok_and(|fits| fits) && walk.cursor.at() - start <= LONGEST && walk.steps.len() <= MOST_STEPS;
        *self = Self { misses: 0, patience, ..Self::default() };
        if learned {
            self.end = Literal::new(walk.cursor.slice(walk.from).to_vec());
            self.steps = walk.steps;
        }
    }
}

/// A string that nearly always is the name that the column expects next.
#[inline(always)]
fn name<'a>(cursor: &mut Cursor<'a>, expected: Option<&[u8]>, role: Role, hits: &mut u16) -> &'a [u8] {
    match expected.and_then(|expected| cursor.eat_before_quote(expected)) {
        Some(text) => {
            *hits |= role.bit();
            text
        }
        None => cursor.until_special(),
    }
}

/// A walk over one object to learn it.
struct Walk<'a> {
    cursor: Cursor<'a>,
    /// Where the text before the next value begins.
    from: usize,
    steps: Vec<Step>,
    keep_unknown: bool,
}

impl Walk<'_> {
    /// False where a value has no plain form, so that the object has no shape. The object is known to be sound.
    fn object(&mut self, members: &[Member]) -> Scan<bool> {
        self.cursor.eat(b'{');
        self.cursor.space();
        let mut more = !self.cursor.eat(b'}');
        while more {
            self.cursor.space();
            let key = self.cursor.string()?.resolve()?;
            self.cursor.colon()?;
            self.cursor.space();
            let target = members.iter().find(|m| *m.name == *key).map(|m| &m.target);
            let fits = match target {
                Some(Target::Inner(inner)) if self.cursor.peek() == Some(b'{') => self.object(inner)?,
                Some(Target::Leaf(role)) => self.value(Some(*role))?,
                _ => !self.keep_unknown && self.value(None)?,
            };
            if !fits {
                return Ok(false);
            }
            self.cursor.space();
            more = self.cursor.eat(b',');
        }
        self.cursor.eat(b'}');
        Ok(true)
    }

    fn value(&mut self, role: Option<Role>) -> Scan<bool> {
        let quoted = match self.cursor.peek() {
            Some(b'"') => true,
            Some(b'-' | b'0'..=b'9') => false,
            // What is not a string or a number must come again byte for byte: right for null, and for members nobody asked for.
            other => {
                self.cursor.skip_value()?;
                return Ok(role.is_none() || other == Some(b'n'));
            }
        };
        let learnable = match role {
            None | Some(Role::Value) => true,
            Some(Role::Quality) => !quoted,
            Some(Role::Id | Role::Device | Role::Sensor | Role::SensorType | Role::Unit | Role::Timestamp) => quoted,
            Some(Role::Tags | Role::Ingest | Role::Stamped) => false,
        };
        if quoted {
            self.cursor.eat(b'"');
        }
        self.steps.push(Step { before: Literal::new(self.cursor.slice(self.from).to_vec()), role, quoted });
        let plain = if quoted {
            self.cursor.until_special();
            self.from = self.cursor.at();
            self.cursor.eat(b'"')
        } else {
            let plain = self.cursor.plain_number().is_some();
            self.from = self.cursor.at();
            plain
        };
        Ok(learnable && plain)
    }
}
