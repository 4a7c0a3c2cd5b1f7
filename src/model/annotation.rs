//! The one table of annotations, and the grammar of their values.
//!
//! Keys and meanings are those of the AWS Load Balancer Controller (its guide, "Service annotations"), so that an
//! existing manifest can be brought along. A key that is in nobody's table is most often a typing mistake, and one that
//! weir knows but does not honour must not be dropped silently: both come back as a warning.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use super::attribute::one_of;

#[cfg(test)]
mod admission;
mod table;

pub use table::*;

/// What every key that means a load balancer begins with.
const BALANCER_PREFIX: &str = "service.beta.kubernetes.io/aws-load-balancer-";
/// Bytes that a sentence shows of a value: an Event holds 1,024, and what would be right stands last.
const SHOWN: usize = 240;

/// One thing wrong with a Service, as the sentence its owner reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Full annotation key, or path of a field in the Service.
    pub field: String,
    /// The value as given.
    pub value: String,
    /// What is wrong with it, as the end of a sentence that begins with the value.
    pub wrong: String,
    /// Grammar or allowed values.
    pub expected: String,
}

impl Problem {
    /// A problem of these parts.
    pub fn new(
        field: impl Into<String>,
        value: impl Into<String>,
        wrong: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), value: value.into(), wrong: wrong.into(), expected: expected.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, wrong) = (abridged(&self.value), abridged(&self.wrong));
        write!(f, "{}: {value:?} {wrong}; expected {}", self.field, self.expected)
    }
}

/// A text with its middle left out where it is long.
fn abridged(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN {
        return text.into();
    }
    let head = text.floor_char_boundary(SHOWN * 2 / 3);
    let tail = text.ceil_char_boundary(text.len() - SHOWN / 3);
    format!("{} … {}", &text[..head], &text[tail..]).into()
}

/// A Service's annotations.
#[derive(Clone, Copy, Debug)]
pub struct Annotations<'a>(pub &'a BTreeMap<String, String>);

impl<'a> Annotations<'a> {
    /// A value without blanks around it. Empty is the same as not set, for every key.
    pub fn text(self, key: &str) -> Option<&'a str> {
        self.0.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// A list: split at commas, trimmed, empty parts dropped. `what` is a thing that it names, `expected` what would be
    /// right.
    ///
    /// # Errors
    /// The sentence about a text that names nothing: its owner meant something by it, and not the default.
    pub fn list(self, key: &str, what: &str, expected: impl Into<String>) -> Result<Vec<&'a str>, Problem> {
        let Some(text) = self.text(key) else { return Ok(vec![]) };
        let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err(Problem::new(key, text, format!("names no {what}"), expected));
        }
        Ok(parts)
    }

    /// A truth value, in the spellings of Go's `ParseBool`.
    ///
    /// # Errors
    /// The sentence about anything else.
    pub fn flag(self, key: &str) -> Result<Option<bool>, Problem> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text {
            "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(Some(false)),
            _ => Err(Problem::new(key, text, "is no truth value", "true or false")),
        }
    }

    /// A whole number in a range.
    ///
    /// # Errors
    /// The sentence about anything else.
    pub fn number(self, key: &str, range: RangeInclusive<i32>) -> Result<Option<i32>, Problem> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let expected = format!("{} to {}", range.start(), range.end());
        match text.parse::<i64>().map(i32::try_from) {
            Ok(Ok(number)) if range.contains(&number) => Ok(Some(number)),
            Ok(_) => Err(Problem::new(key, text, "is out of range", expected)),
            Err(_) => Err(Problem::new(key, text, "is no whole number", expected)),
        }
    }

    /// One of these words.
    ///
    /// # Errors
    /// The sentence about anything else.
    pub fn word<'w>(self, key: &str, words: &[&'w str]) -> Result<Option<&'w str>, Problem> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let found = words.iter().find(|word| **word == text).copied();
        found.map(Some).ok_or_else(|| Problem::new(key, text, "is unknown", one_of(words)))
    }

    /// Keys of a family, each with what follows the family's name.
    pub fn family(self, prefix: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let keys = self.0.iter().filter(|(_, value)| !value.trim().is_empty()).map(|(key, _)| key.as_str());
        keys.filter_map(move |key| Some((key, key.strip_prefix(prefix)?)))
    }

    /// `on` or `off`.
    ///
    /// # Errors
    /// The sentence about anything else.
    pub fn switch(self, key: &str) -> Result<Option<bool>, Problem> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text {
            "on" => Ok(Some(true)),
            "off" => Ok(Some(false)),
            _ => Err(Problem::new(key, text, "is neither on nor off", "on or off")),
        }
    }

    /// A map `k=v,k=v`. The first `=` splits, a backslash takes the next character literally, and a part without `=`,
    /// an empty key, a key given twice or a comma at the end is an error.
    ///
    /// # Errors
    /// The sentence that says which part is wrong.
    pub fn map(self, key: &str) -> Result<BTreeMap<String, String>, Problem> {
        let Some(text) = self.text(key) else { return Ok(BTreeMap::new()) };
        let wrong = |what: String| Problem::new(key, text, what, r"key=value,… with \, for a comma inside a value");
        let mut map = BTreeMap::new();
        for part in split_unescaped(text, ',') {
            let sides = split_once_unescaped(&part, '=');
            let Some((name, value)) = sides.map(|(name, value)| (unescape(name.trim()), unescape(value.trim()))) else {
                return Err(wrong(if part.trim().is_empty() {
                    "has an empty part".into()
                } else {
                    format!("has the part {part:?} without \"=\"")
                }));
            };
            if name.is_empty() {
                return Err(wrong(format!("has the part {part:?} without a key")));
            }
            if map.insert(name.clone(), value).is_some() {
                return Err(wrong(format!("gives {name:?} twice")));
            }
        }
        Ok(map)
    }

    /// Sentences about keys that will have no effect.
    pub fn warnings(self) -> Vec<String> {
        let mut unknown = vec![];
        let mut sentences = vec![];
        for (key, value) in self.0.iter().filter(|(_, value)| !value.trim().is_empty()) {
            if key == TYPE && !["nlb", "external"].contains(&value.trim()) {
                sentences.push(format!("{key}: {value:?} is ignored; the load balancer class decides"));
            }
            match TABLE.iter().find(|row| row.covers(key)).map(|row| row.answer) {
                Some(Answer::Ignored(why)) => sentences.push(format!("{key}: is ignored; it {why}")),
                None if key.starts_with(BALANCER_PREFIX) => unknown.push(key.as_str()),
                Some(Answer::Honoured | Answer::Refused) | None => {}
            }
        }
        if !unknown.is_empty() {
            sentences.push(format!("unknown and ignored: {}", unknown.join(", ")));
        }
        sentences
    }
}

/// Parts between separators that no backslash precedes; the backslashes stay.
fn split_unescaped(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for letter in text.chars() {
        if letter == separator && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = letter == '\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts
}

fn split_once_unescaped(text: &str, separator: char) -> Option<(String, String)> {
    let mut parts = split_unescaped(text, separator).into_iter();
    let first = parts.next()?;
    let rest: Vec<String> = parts.collect();
    (!rest.is_empty()).then(|| (first, rest.join(&separator.to_string())))
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        plain.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    fn map(text: &str) -> Result<Vec<(String, String)>, String> {
        let annotations = with(RESOURCE_TAGS, text);
        Annotations(&annotations).map(RESOURCE_TAGS).map(|m| m.into_iter().collect()).map_err(|p| p.to_string())
    }

    #[test]
    fn maps() {
        let pairs =
            |list: &[(&str, &str)]| Ok(list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Vec<_>>());
        assert_eq!(map(" a = 1 , b=x=y"), pairs(&[("a", "1"), ("b", "x=y")]));
        assert_eq!(map(r"a=1\,2,b=\\"), pairs(&[("a", "1,2"), ("b", r"\")]));
        assert_eq!(map("a="), pairs(&[("a", "")]));
        assert_eq!(map("   "), pairs(&[]));
        for bad in ["a=1,b", "a=x,y,b=2", ",a=1", "a=1,", "=1", "a=1,a=2"] {
            let sentence = map(bad).unwrap_err();
            assert!(sentence.starts_with(&format!("{RESOURCE_TAGS}: {bad:?} ")), "{sentence}");
            assert!(sentence.contains("; expected key=value"), "{sentence}");
        }
    }

    #[test]
    fn what_is_wrong_and_what_would_be_right_is_said_of_the_longest_value_too() {
        for (value, wrong) in [
            (format!("a={},b", "ä€😀".repeat(20_000)), r#"has the part "b" without "=""#),
            (format!("{}=1,=1", "\u{202e}".repeat(9_000)), r#"has the part "=1" without a key"#),
            (format!("{0}=1,{0}=2", "k".repeat(9_000)), r#"kkk" twice"#),
        ] {
            let sentence = map(&value).unwrap_err();
            assert!(sentence.len() <= 1024 && sentence.contains(wrong), "{sentence}");
            assert!(sentence.ends_with(r"with \, for a comma inside a value"), "{sentence}");
        }
    }

    #[test]
    fn lists_drop_blanks_and_empty_parts() {
        let annotations = with(SUBNETS, " a, b ,,c,");
        assert_eq!(Annotations(&annotations).list(SUBNETS, "subnet", "ids").unwrap(), ["a", "b", "c"]);
    }

    #[test]
    fn a_list_that_names_nothing_is_not_an_empty_one() {
        for nothing in ["", "  "] {
            assert_eq!(Annotations(&with(SUBNETS, nothing)).list(SUBNETS, "subnet", "ids"), Ok(vec![]));
        }
        for nothing in [",", " , ,"] {
            let problem = Problem::new(SUBNETS, nothing.trim(), "names no subnet", "ids");
            assert_eq!(Annotations(&with(SUBNETS, nothing)).list(SUBNETS, "subnet", "ids"), Err(problem));
        }
    }

    #[test]
    fn keys_without_effect_are_named() {
        let mut annotations = with("service.beta.kubernetes.io/aws-load-balancer-shceme", "internal");
        annotations.extend(with("service.beta.kubernetes.io/aws-load-balancer-connection-idle-timeout", "60"));
        annotations.extend(with("service.beta.kubernetes.io/aws-load-balancer-extra-security-groups", " "));
        annotations.extend(with(TYPE, "classic"));
        annotations.extend(with("example.com/mine", "1"));
        let warnings = Annotations(&annotations).warnings().join("\n");
        for part in
            ["shceme", "idle-timeout: is ignored; it applies to Classic load balancers only", "\"classic\" is ignored"]
        {
            assert!(warnings.contains(part), "{part} in {warnings}");
        }
        assert!(!warnings.contains("example.com") && !warnings.contains("extra-security-groups"), "{warnings}");
        let fine = with(SCHEME, "internal");
        assert!(Annotations(&fine).warnings().is_empty());
    }

    #[test]
    fn each_key_that_is_ignored_says_why() {
        for row in TABLE {
            let annotations = with(row.key, "60");
            let warnings = Annotations(&annotations).warnings();
            match row.answer {
                Answer::Ignored(why) => assert_eq!(warnings, [format!("{}: is ignored; it {why}", row.key)]),
                Answer::Honoured | Answer::Refused if row.key == TYPE => assert_eq!(warnings.len(), 1),
                Answer::Honoured | Answer::Refused => assert_eq!(warnings, Vec::<String>::new()),
            }
        }
    }

    #[test]
    fn each_key_has_one_row() {
        for row in TABLE {
            assert_eq!(TABLE.iter().filter(|other| other.covers(row.key)).count(), 1, "{}", row.key);
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_a_map_or_a_sentence(text in ".{0,80}") {
            if let Err(sentence) = map(&text) {
                prop_assert!(sentence.contains(RESOURCE_TAGS) && sentence.contains("expected"));
            }
        }
    }
}
