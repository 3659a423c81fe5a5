//! `CNI_ARGS`: `K=V;K=V`.

use std::net::IpAddr;

use super::address::{RequestedIp, parse_ip};
use super::error::ConfError;
use super::names::Mac;

/// What `CNI_ARGS` says. Where a key is given twice, as Multus does, the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `MAC`
    pub mac: Option<Mac>,
    /// `IP`: one, or several with commas between them, as Multus writes them.
    pub ips: Vec<RequestedIp>,
    /// `GATEWAY`: one, or several with commas between them.
    pub gateways: Vec<IpAddr>,
    /// `K8S_POD_NAMESPACE`
    pub k8s_pod_namespace: Option<String>,
    /// `K8S_POD_NAME`
    pub k8s_pod_name: Option<String>,
    /// `K8S_POD_UID`
    pub k8s_pod_uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`
    pub k8s_pod_infra_container_id: Option<String>,
    /// Every pair as it came, in order.
    pub pairs: Vec<(String, String)>,
}

impl CniArgs {
    /// Parses `CNI_ARGS`. A key that nobody knows is an error unless `IgnoreUnknown` is true.
    pub fn parse(value: &str) -> Result<Self, ConfError> {
        let mut args = Self::default();
        let mut unknown = None;
        let mut ignore_unknown = false;
        for pair in value.split(';').filter(|_| !value.is_empty()) {
            let (key, text) = split(pair)?;
            if key == "IgnoreUnknown" {
                ignore_unknown = truth(text)?;
            } else if !args.take(key, text)? {
                unknown.get_or_insert(pair);
            }
            args.pairs.push((key.to_owned(), text.to_owned()));
        }
        match unknown {
            Some(pair) if !ignore_unknown => Err(ConfError::field(
                "CNI_ARGS",
                pair,
                "this key is unknown: add IgnoreUnknown=true, or leave it out",
            )),
            _ => Ok(args),
        }
    }

    /// Parses as much of `CNI_ARGS` as can be parsed: what has to be removed is removed whatever they say.
    pub fn parse_leniently(value: &str) -> Self {
        let mut args = Self::default();
        for (key, text) in value.split(';').filter_map(|pair| split(pair).ok()) {
            // A pair that is known but wrong leaves its field as it was; it is kept among the pairs.
            let _ = args.take(key, text);
            args.pairs.push((key.to_owned(), text.to_owned()));
        }
        args
    }

    /// Takes a pair over; false where the key is unknown.
    fn take(&mut self, key: &str, text: &str) -> Result<bool, ConfError> {
        let some_text = || Some(text.to_owned()).filter(|text| !text.is_empty());
        match key {
            "MAC" => self.mac = some_text().map(|text| Mac::parse("CNI_ARGS MAC", &text)).transpose()?,
            "IP" => self.ips = list(text, |item| RequestedIp::parse("CNI_ARGS IP", item))?,
            "GATEWAY" => self.gateways = list(text, |item| parse_ip("CNI_ARGS GATEWAY", item))?,
            "K8S_POD_NAMESPACE" => self.k8s_pod_namespace = some_text(),
            "K8S_POD_NAME" => self.k8s_pod_name = some_text(),
            "K8S_POD_UID" => self.k8s_pod_uid = some_text(),
            "K8S_POD_INFRA_CONTAINER_ID" => self.k8s_pod_infra_container_id = some_text(),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn split(pair: &str) -> Result<(&str, &str), ConfError> {
    match pair.split_once('=') {
        Some((key, value)) if !value.contains('=') => Ok((key, value)),
        _ => Err(ConfError::field(
            "CNI_ARGS",
            pair,
            "write pairs as K=V with exactly one `=`, `;` between them",
        )),
    }
}

fn truth(text: &str) -> Result<bool, ConfError> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(ConfError::field("CNI_ARGS IgnoreUnknown", text, "must be 1, true, 0 or false")),
    }
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, ConfError>) -> Result<Vec<T>, ConfError> {
    text.split(',').map(str::trim).filter(|_| !text.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_containerd_and_multus_pass_is_understood() {
        let args = CniArgs::parse(
            "IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=0abc;\
             K8S_POD_UID=5f2e;IgnoreUnknown=1;K8S_POD_NAME=web-1;OTHER=x;MAC=0A:58:0a:01:02:03;\
             IP=10.9.9.9/24,fd00::9/64",
        )
        .expect("is valid");
        assert_eq!(args.k8s_pod_namespace.as_deref(), Some("default"));
        assert_eq!(args.k8s_pod_name.as_deref(), Some("web-1"));
        assert_eq!(args.k8s_pod_infra_container_id.as_deref(), Some("0abc"));
        assert_eq!(args.k8s_pod_uid.as_deref(), Some("5f2e"));
        assert_eq!(args.mac.map(|it| it.to_string()).as_deref(), Some("0a:58:0a:01:02:03"));
        let ips: Vec<String> = args.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.9.9.9/24", "fd00::9/64"]);
        assert_eq!(args.pairs.len(), 10);
        assert_eq!(args.pairs[7], ("OTHER".to_owned(), "x".to_owned()));
    }

    #[test]
    fn nothing_and_empty_values_are_nothing() {
        assert_eq!(CniArgs::parse("").expect("is valid"), CniArgs::default());
        let args = CniArgs::parse("MAC=;IP=;GATEWAY=;K8S_POD_NAME=").expect("is valid");
        assert_eq!((args.mac, args.ips.len(), args.gateways.len(), args.k8s_pod_name), (None, 0, 0, None));
    }

    #[test]
    fn errors_name_the_pair() {
        let pairs = "write pairs as K=V with exactly one `=`, `;` between them";
        for (value, expected) in [
            ("MAC", format!("CNI_ARGS `MAC`: {pairs}")),
            ("IP=10.0.0.1;", format!("CNI_ARGS ``: {pairs}")),
            ("A=b=c;IgnoreUnknown=1", format!("CNI_ARGS `A=b=c`: {pairs}")),
            ("X=1", "CNI_ARGS `X=1`: this key is unknown: add IgnoreUnknown=true, or leave it out".into()),
            ("X=1;IgnoreUnknown=0", "CNI_ARGS `X=1`: this key is unknown: add IgnoreUnknown=true, or leave it out".into()),
            ("mac=0a:58:0a:01:02:03", "CNI_ARGS `mac=0a:58:0a:01:02:03`: this key is unknown: add IgnoreUnknown=true, or leave it out".into()),
            ("IgnoreUnknown=yes", "CNI_ARGS IgnoreUnknown `yes`: must be 1, true, 0 or false".into()),
            ("IP=10.0.0.1,x", "CNI_ARGS IP `x`: write an address without prefix length, such as 10.12.34.5".into()),
            ("GATEWAY=10.0.0.1/24", "CNI_ARGS GATEWAY `10.0.0.1/24`: write an address without prefix length, such as 10.12.34.5".into()),
            ("MAC=1", "CNI_ARGS MAC `1`: write a hardware address as six bytes: 0a:58:0a:01:02:03".into()),
        ] {
            assert_eq!(CniArgs::parse(value).expect_err(value).to_string(), expected);
        }
    }

    #[test]
    fn removal_reads_what_it_can() {
        let args = CniArgs::parse_leniently("MAC=bad;X=1;junk;K8S_POD_NAME=web-0;IP=10.0.0.1,x;");
        assert_eq!((args.mac, args.ips.len()), (None, 0));
        assert_eq!(args.k8s_pod_name.as_deref(), Some("web-0"));
        assert_eq!(args.pairs.len(), 4);
    }

    proptest! {
        #[test]
        fn pairs_survive(pairs in prop::collection::vec(("[A-Z]{1,6}_x", "[a-z0-9:/,.]{0,9}"), 0..6)) {
            let text: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v};")).collect();
            let text = format!("{}IgnoreUnknown=1", text.concat());
            let args = CniArgs::parse(&text).expect("unknown keys are ignored");
            prop_assert_eq!(&args.pairs[..pairs.len()], &pairs[..]);
            prop_assert_eq!(args, CniArgs::parse_leniently(&text));
        }

        #[test]
        fn lenient_is_strict_where_strict_succeeds(text in "(IP|MAC|GATEWAY|K8S_POD_UID|=|;|,|1|10.0.0.1|:){0,12}") {
            if let Ok(args) = CniArgs::parse(&text) {
                prop_assert_eq!(args, CniArgs::parse_leniently(&text));
            }
        }
    }
}
