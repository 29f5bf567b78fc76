//! `WWW-Authenticate`: what credentials would do (RFC 7617; RFC 6750, section 3; distribution, "Token authentication
//! specification"). Pure.

/// `Basic realm="…"`.
pub(super) fn basic(realm: &str) -> String {
    format!("Basic realm={}", quoted(realm))
}

/// `Bearer realm="…",service="…",scope="…",error="…"`; a scope that is empty is left out.
pub(super) fn bearer(realm: &str, service: &str, scope: &str, error: Option<&str>) -> String {
    let mut challenge = format!("Bearer realm={},service={}", quoted(realm), quoted(service));
    let further = [("scope", Some(scope).filter(|scope| !scope.is_empty())), ("error", error)];
    for (name, value) in further {
        if let Some(value) = value {
            challenge.push_str(&format!(",{name}={}", quoted(value)));
        }
    }
    challenge
}

/// The address of a token server on the host that the client asked. `scheme` is ours; a proxy before us may have said
/// better. What could not stand in a URL is no host.
pub(super) fn realm_here(
    scheme: &str,
    host: Option<&str>,
    forwarded_proto: Option<&str>,
    path: &str,
) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let host = host.filter(|host| !host.is_empty() && host.bytes().all(plain))?;
    let scheme = forwarded_proto.filter(|proto| matches!(*proto, "http" | "https")).unwrap_or(scheme);
    Some(format!("{scheme}://{host}{path}"))
}

/// A quoted string of RFC 9110, section 5.6.4. What may not stand in a header is left out.
fn quoted(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for character in value.chars().filter(|character| matches!(character, ' '..='~')) {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_those_that_clients_know() {
        assert_eq!(basic("Shoal"), r#"Basic realm="Shoal""#);
        assert_eq!(
            bearer(
                "https://auth.example/token",
                "shoal",
                "repository:a/b:pull,push",
                Some("insufficient_scope")
            ),
            r#"Bearer realm="https://auth.example/token",service="shoal",scope="repository:a/b:pull,push",error="insufficient_scope""#
        );
        assert_eq!(bearer("https://a", "b", "", None), r#"Bearer realm="https://a",service="b""#);
    }

    #[test]
    fn a_realm_on_the_asked_host_is_as_a_proxy_says() {
        let realm = |host, proto| realm_here("https", host, proto, "/auth/token");
        assert_eq!(realm(Some("r.example:5000"), None).as_deref(), Some("https://r.example:5000/auth/token"));
        assert_eq!(realm(Some("[::1]:5000"), Some("http")).as_deref(), Some("http://[::1]:5000/auth/token"));
        assert_eq!(realm(Some("a"), Some("javascript")).as_deref(), Some("https://a/auth/token"));
        for host in [None, Some(""), Some("a\",realm=\"b"), Some("user@host"), Some("a/b")] {
            assert_eq!(realm(host, None), None, "{host:?}");
        }
    }

    proptest! {
        #[test]
        fn no_realm_breaks_out_of_its_quotes(realm in "\\PC{0,40}") {
            let challenge = basic(&realm);
            let inner = challenge.strip_prefix("Basic realm=\"").and_then(|rest| rest.strip_suffix('"')).unwrap();
            let mut characters = inner.chars();
            while let Some(character) = characters.next() {
                prop_assert!(character != '"' && character.is_ascii() && !character.is_ascii_control());
                if character == '\\' {
                    prop_assert!(matches!(characters.next(), Some('"' | '\\')));
                }
            }
        }
    }
}
