//! One JSON object to the parts of a reading, in a single pass.

use std::borrow::Cow;

use super::config::Fields;
use super::literal::Literal;
use super::parts::{Checks, Fault, Parts, Role, Surroundings, Time, time_text};
use super::rows::{Columns, Value};
use super::scan::{Cursor, compact};
use super::shape::Shape;
use super::time::Times;

/// A member that is known at some depth.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) name: Box<[u8]>,
    /// `"name":`, the form in which it nearly always stands; empty where the name would need escapes.
    literal: Literal,
    pub(super) target: Target,
}

/// What a member is.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// A part of a reading.
    Leaf(Role),
    /// An object with known members: a path leads through it.
    Inner(Vec<Member>),
}

/// Which members are known, and how the last object was laid out.
#[derive(Debug)]
pub(super) struct ObjectReader {
    members: Vec<Member>,
    /// Member number of each key of the last object, in order: the next object most likely has the same keys.
    layout: Vec<Option<usize>>,
    shape: Shape,
    pub(super) wide: bool,
    keep_unknown: bool,
    times: Times,
}

/// Further readings of a wide object: sensor and value.
type Wide<'a> = Vec<(Cow<'a, [u8]>, Value<'a>)>;

impl ObjectReader {
    /// Reads objects with the given members.
    ///
    /// # Errors
    /// A JSON pointer into the configuration and what is wrong there.
    pub(super) fn new(paths: &[(Role, &str, &str)], wide: bool, keep_unknown: bool) -> Result<Self, (String, String)> {
        let mut members = Vec::new();
        for (role, path, key) in paths {
            let steps: Vec<&str> = path.strip_prefix("$.").unwrap_or(path).split('.').collect();
            if steps.iter().any(|s| s.is_empty()) {
                return Err((format!("/fields/{key}"), format!("'{path}' is no path; write a member name such as a.b.c")));
            }
            insert(&mut members, &steps, *role).map_err(|message| (format!("/fields/{key}"), message))?;
        }
        Ok(Self { members, layout: Vec::new(), shape: Shape::default(), wide, keep_unknown, times: Times::default() })
    }

    #[cfg(test)]
    pub(super) fn misses(&self) -> u32 {
        self.shape.misses()
    }

    /// Reads the object at `cursor` and appends its row, or rows. `each` is told the fate of every reading, in order; a
    /// malformed object counts for one.
    pub(super) fn read(
        &mut self,
        cursor: &mut Cursor<'_>,
        checks: &Checks,
        around: &Surroundings<'_>,
        columns: &mut Columns,
        mut each: impl FnMut(Result<(), Fault>),
    ) {
        let start = cursor.at();
        if !self.wide
            && let Some(found) = self.shape.read(cursor, checks, &mut self.times, columns)
        {
            return each(checks.append(&found, around, columns));
        }
        let mut found = Found { parts: Parts::default(), seen: 0, wide: Vec::new(), tags: Vec::new() };
        let mut pass = Pass { checks, wide: self.wide, keep_unknown: self.keep_unknown, times: &mut self.times };
        let outcome = pass.root(cursor, &self.members, &mut self.layout, &mut found);
        let end = |c: &mut Cursor<'_>| if c.at_end() { Ok(()) } else { Err(Fault::Syntax("something follows after the object")) };
        if let Err(fault) = outcome.and_then(|()| end(cursor)) {
            return each(Err(fault));
        }
        if !found.tags.is_empty() {
            found.tags.push(b'}');
            found.parts.tags = Some(Cow::Owned(std::mem::take(&mut found.tags)));
        }
        if !self.wide {
            let outcome = checks.append(&found.parts.plain(), around, columns);
            if outcome.is_ok() {
                self.shape.learn(cursor.slice(0), start, &self.members, self.keep_unknown);
            }
            return each(outcome);
        }
        // A long id would be repeated in every row of the object.
        if found.parts.id.as_ref().is_some_and(|id| id.len() > 256) {
            return each(Err(Fault::Part(Role::Id, "is longer than 256 bytes")));
        }
        if found.wide.is_empty() {
            return each(Err(Fault::Syntax("no member holds a number or boolean")));
        }
        for (sensor, value) in found.wide {
            found.parts.sensor = Some(sensor);
            found.parts.value = Some(value);
            each(checks.append(&found.parts.plain(), around, columns));
        }
    }
}

fn insert(members: &mut Vec<Member>, steps: &[&str], role: Role) -> Result<(), String> {
    let [step, rest @ ..] = steps else { return Ok(()) };
    let at = members.iter().position(|m| *m.name == *step.as_bytes());
    match (at.and_then(|at| members.get_mut(at)), rest.is_empty()) {
        (None, last) => {
            let mut target = Target::Leaf(role);
            if !last {
                let mut inner = Vec::new();
                insert(&mut inner, rest, role)?;
                target = Target::Inner(inner);
            }
            let plain = step.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\');
            let literal = if plain { format!("\"{step}\":").into_bytes() } else { Vec::new() };
            members.push(Member { name: step.as_bytes().into(), literal: Literal::new(literal), target });
            Ok(())
        }
        (Some(Member { target: Target::Inner(inner), .. }), false) => insert(inner, rest, role),
        (Some(_), _) => Err(format!("'{step}' is used twice; two fields cannot be the same member")),
    }
}

/// The members `fields` names, without those that the surroundings give or that `wide` takes as readings.
pub(super) fn member_paths(fields: &Fields, device: bool, sensor: bool, wide: bool) -> Vec<(Role, &str, &str)> {
    let mut paths = vec![
        (Role::Id, fields.id.as_str(), "id"),
        (Role::Timestamp, fields.timestamp.as_str(), "timestamp"),
        (Role::Quality, fields.quality.as_str(), "quality"),
    ];
    if !device {
        paths.push((Role::Device, fields.device.as_str(), "device"));
    }
    if !sensor && !wide {
        paths.push((Role::Sensor, fields.sensor.as_str(), "sensor"));
    }
    if !wide {
        paths.push((Role::SensorType, fields.sensor_type.as_str(), "type"));
        paths.push((Role::Value, fields.value.as_str(), "value"));
        paths.push((Role::Unit, fields.unit.as_str(), "unit"));
    }
    paths
}

struct Found<'a> {
    parts: Parts<'a>,
    seen: u16,
    wide: Wide<'a>,
    tags: Vec<u8>,
}

/// One pass over one object.
struct Pass<'p> {
    checks: &'p Checks,
    wide: bool,
    keep_unknown: bool,
    times: &'p mut Times,
}

impl Pass<'_> {
    fn root<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        members: &[Member],
        layout: &mut Vec<Option<usize>>,
        found: &mut Found<'a>,
    ) -> Result<(), Fault> {
        cursor.space();
        if !cursor.eat(b'{') {
            return Err(Fault::Syntax("not a JSON object"));
        }
        cursor.space();
        if cursor.eat(b'}') {
            return Ok(());
        }
        for key in 0.. {
            let expected = layout.get(key).copied().flatten().and_then(|m| members.get(m));
            match expected.filter(|m| !m.literal.is_empty() && cursor.eat_literal(&m.literal)) {
                Some(member) => self.member(cursor, member, found)?,
                None => {
                    let number = self.other_key(cursor, members, found, true)?;
                    if layout.len() <= key {
                        // Bounded, because a payload chooses how many keys it has.
                        layout.resize(key.min(63) + 1, None);
                    }
                    if let Some(slot) = layout.get_mut(key) {
                        *slot = number;
                    }
                }
            }
            cursor.space();
            if cursor.eat(b'}') {
                return Ok(());
            }
            if !cursor.eat(b',') {
                return Err(Fault::Syntax("expected a comma or the end of the object"));
            }
            cursor.space();
        }
        Ok(())
    }

    /// A member whose key was not foreseen; its number where it is a known one.
    #[cold]
    fn other_key<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        members: &[Member],
        found: &mut Found<'a>,
        top: bool,
    ) -> Result<Option<usize>, Fault> {
        let key = cursor.string()?;
        let name = key.resolve()?;
        cursor.colon()?;
        if let Some(number) = members.iter().position(|m| *m.name == *name)
            && let Some(member) = members.get(number)
        {
            self.member(cursor, member, found)?;
            return Ok(Some(number));
        }
        cursor.space();
        let start = cursor.at();
        if top && self.wide && matches!(cursor.peek(), Some(b'-' | b'0'..=b'9' | b't' | b'f')) {
            if let Some(value) = scalar(cursor)? {
                found.wide.push((name, value));
            }
            return Ok(None);
        }
        cursor.skip_value()?;
        if top && self.keep_unknown && !self.wide {
            found.tags.push(if found.tags.is_empty() { b'{' } else { b',' });
            found.tags.extend_from_slice(key.quoted());
            found.tags.push(b':');
            compact(cursor.slice(start), &mut found.tags);
        }
        Ok(None)
    }

    #[inline(always)]
    fn member<'a>(&mut self, cursor: &mut Cursor<'a>, member: &Member, found: &mut Found<'a>) -> Result<(), Fault> {
        cursor.space();
        match &member.target {
            Target::Leaf(role) => {
                if found.seen & role.bit() != 0 {
                    return Err(Fault::Part(*role, "appears twice"));
                }
                found.seen |= role.bit();
                self.leaf(cursor, *role, &mut found.parts)
            }
            Target::Inner(members) => self.inner(cursor, members, found),
        }
    }

    /// An object that a path leads through; anything else in its place has none of the members. Its depth is the path's.
    fn inner<'a>(&mut self, cursor: &mut Cursor<'a>, members: &[Member], found: &mut Found<'a>) -> Result<(), Fault> {
        if !cursor.eat(b'{') {
            return Ok(cursor.skip_value()?);
        }
        cursor.space();
        if cursor.eat(b'}') {
            return Ok(());
        }
        loop {
            self.other_key(cursor, members, found, false)?;
            cursor.space();
            if cursor.eat(b'}') {
                return Ok(());
            }
            if !cursor.eat(b',') {
                return Err(Fault::Syntax("expected a comma or the end of the object"));
            }
            cursor.space();
        }
    }

    #[inline(always)]
    fn leaf<'a>(&mut self, cursor: &mut Cursor<'a>, role: Role, parts: &mut Parts<'a>) -> Result<(), Fault> {
        match role {
            Role::Id => parts.id = text(cursor, role)?,
            Role::Device => parts.device = text(cursor, role)?,
            Role::Sensor => parts.sensor = text(cursor, role)?,
            Role::SensorType => parts.sensor_type = text(cursor, role)?,
            Role::Unit => parts.unit = text(cursor, role)?,
            Role::Timestamp => {
                parts.time = match cursor.plain_string() {
                    Some(text) => Some(time_text(text, self.times)),
                    None => self.time(cursor, role)?,
                }
            }
            Role::Value => {
                if let Some(number) = cursor.plain_number() {
                    parts.value = Some(Value::Number(number));
                    return Ok(());
                }
                parts.value = match cursor.peek() {
                    Some(b'{' | b'[') => return Err(Fault::Part(role, "must be a number, a string or a boolean")),
                    _ => scalar(cursor)?,
                };
                if self.checks.numbers_only && !matches!(parts.value, None | Some(Value::Number(_))) {
                    return Err(Fault::Part(role, "must be a number"));
                }
            }
            Role::Quality => {
                parts.quality = match cursor.plain_number() {
                    Some(score) => Some(self.checks.quality_score(score)),
                    None => self.quality(cursor)?,
                }
            }
            Role::Tags => {
                let start = cursor.at();
                if cursor.peek() != Some(b'{') {
                    return Err(Fault::Part(role, "must be an object"));
                }
                cursor.skip_value()?;
                let mut tags = Vec::new();
                compact(cursor.slice(start), &mut tags);
                parts.tags = Some(Cow::Owned(tags));
            }
            Role::Ingest => {
                parts.ingest = match self.time(cursor, role)? {
                    Some(Time::At(us)) => Some(us),
                    Some(Time::Unreadable) => return Err(Fault::Part(role, "is no time that can be read")),
                    None => None,
                }
            }
            Role::Stamped => parts.stamped = cursor.word()?.unwrap_or(false),
        }
        Ok(())
    }

    fn time(&mut self, cursor: &mut Cursor<'_>, role: Role) -> Result<Option<Time>, Fault> {
        match cursor.peek() {
            Some(b'"') => Ok(Some(time_text(&cursor.string()?.resolve()?, self.times))),
            Some(b'-' | b'0'..=b'9') => Ok(Some(self.checks.time_number(cursor.number()?))),
            _ if cursor.eat_all(b"null") => Ok(None),
            _ => Err(Fault::Part(role, "must be a string or a number")),
        }
    }

    fn quality(&self, cursor: &mut Cursor<'_>) -> Result<Option<(crate::Quality, Option<f64>)>, Fault> {
        match cursor.peek() {
            Some(b'-' | b'0'..=b'9') => Ok(Some(self.checks.quality_score(cursor.number()?.value))),
            _ if cursor.eat_all(b"null") => Ok(None),
            _ if self.checks.numbers_only => Err(Fault::Part(Role::Quality, "must be a number")),
            Some(b'"') => Ok(Some((self.checks.quality_word(&cursor.string()?.resolve()?)?, None))),
            Some(b'{') => self.quality_object(cursor).map(Some),
            _ => Err(Fault::Part(Role::Quality, "must be a number, good, uncertain or bad")),
        }
    }

    /// `{"status": "uncertain", "score": 0.6}`; one of the two is enough.
    fn quality_object(&self, cursor: &mut Cursor<'_>) -> Result<(crate::Quality, Option<f64>), Fault> {
        let (mut status, mut score) = (None, None);
        cursor.eat(b'{');
        cursor.space();
        let mut more = !cursor.eat(b'}');
        while more {
            cursor.space();
            let key = cursor.string()?.resolve()?;
            cursor.colon()?;
            cursor.space();
            match (key.as_ref(), cursor.peek()) {
                (b"status", Some(b'"')) if status.is_none() => {
                    status = Some(self.checks.quality_word(&cursor.string()?.resolve()?)?);
                }
                (b"score", Some(b'-' | b'0'..=b'9')) if score.is_none() => score = Some(cursor.number()?.value),
                (b"status" | b"score", _) if !cursor.eat_all(b"null") => {
                    return Err(Fault::Part(Role::Quality, "must have one status (a word) and one score (a number)"));
                }
                (b"status" | b"score", _) => {}
                _ => cursor.skip_value()?,
            }
            cursor.space();
            more = cursor.eat(b',');
            if !more && !cursor.eat(b'}') {
                return Err(Fault::Syntax("expected a comma or the end of the object"));
            }
        }
        match (status, score) {
            (Some(status), score) => Ok((status, score)),
            (None, Some(score)) => Ok(self.checks.quality_score(score)),
            (None, None) => Err(Fault::Part(Role::Quality, "must have a status or a score")),
        }
    }
}

/// A string or null; the way of nearly every string first.
#[inline(always)]
fn text<'a>(cursor: &mut Cursor<'a>, role: Role) -> Result<Option<Cow<'a, [u8]>>, Fault> {
    match cursor.plain_string() {
        Some(text) => Ok(Some(Cow::Borrowed(text))),
        None => string(cursor, role),
    }
}

#[cold]
fn string<'a>(cursor: &mut Cursor<'a>, role: Role) -> Result<Option<Cow<'a, [u8]>>, Fault> {
    if cursor.peek() == Some(b'"') {
        Ok(Some(cursor.string()?.resolve()?))
    } else if cursor.eat_all(b"null") {
        Ok(None)
    } else {
        Err(Fault::Part(role, "must be a string"))
    }
}

/// A number, string or boolean; `None` for null.
fn scalar<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Value<'a>>, Fault> {
    match cursor.peek() {
        Some(b'-' | b'0'..=b'9') => Ok(Some(Value::Number(cursor.number()?.value))),
        Some(b'"') => Ok(Some(Value::Text(cursor.string()?.resolve()?))),
        _ => Ok(cursor.word()?.map(Value::Flag)),
    }
}

/// Canonical members beside the common ones.
pub(super) const CANONICAL: [(Role, &str, &str); 3] =
    [(Role::Tags, "tags", "tags"), (Role::Ingest, "ingestTimestamp", "ingest"), (Role::Stamped, "stamped", "stamped")];
