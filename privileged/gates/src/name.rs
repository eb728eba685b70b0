//! Texts of letters and digits.

/// A text whose only constructor is its check.
macro_rules! proven {
    ($(#[$doc:meta])* $name:ident: $is_good:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks a text.
            ///
            /// # Errors
            /// A text that breaks the rule.
            pub fn parse(parameter: $crate::Name, text: &str) -> $crate::Result<Self> {
                let is_good: fn(&str) -> bool = $is_good;
                $crate::Refusal::when(!is_good(text), parameter, $rule)?;
                Ok(Self(text.to_owned()))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}
pub(crate) use proven;

/// Whether a text has `least` to `most` bytes of ASCII letters, digits and `others`.
pub(crate) fn is_word(text: &str, lengths: std::ops::RangeInclusive<usize>, others: &[u8]) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
    lengths.contains(&text.len()) && text.bytes().all(is_good)
}

/// What a text that may be blank says.
pub(crate) fn given<'a, T>(
    text: &'a str,
    parse: impl FnOnce(&'a str) -> crate::Result<T>,
) -> crate::Result<Option<T>> {
    (!text.is_empty()).then(|| parse(text)).transpose()
}
