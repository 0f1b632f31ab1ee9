//! The peculiarities of DynamoDB: permissions, answers, the form of items, and tables that come and
//! go.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::SystemTime;

use crate::support::faults::{Logged, until_renewed};
use crate::support::injector::{Injector, dynamodb_error};
use crate::support::servers::emulators::{Dynalite, Moto, dynamodb, dynamodb_at, shared_dynalite};
use crate::support::stores::Store;
use crate::support::{ended, faults, until};
use serde_json::{Value, json};

/// Renewed every two seconds.
const RENEWED: &str = "6";

const TABLE: &str = "serializer-locks";

/// The body of what must succeed.
fn asked(address: SocketAddr, action: &str, body: &Value) -> Value {
    let answer = dynamodb(address, action, &body.to_string());
    assert!(answer.contains(" 200 OK"), "{action}: {answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").expect("a body").1).expect("JSON")
}

/// The item of a lock.
fn item(store: &Store) -> Value {
    let body =
        json!({"TableName": TABLE, "Key": {"name": {"S": store.name}}, "ConsistentRead": true});
    asked(shared_dynalite().address(), "GetItem", &body)["Item"].take()
}

pub fn make_table(address: SocketAddr, table: &str, keys: &[(&str, &str, &str)]) {
    let attribute = |(name, kind, _): &(&str, &str, &str)| json!({"AttributeName": name, "AttributeType": kind});
    let key =
        |(name, _, role): &(&str, &str, &str)| json!({"AttributeName": name, "KeyType": role});
    let body = json!({"TableName": table, "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": keys.iter().map(attribute).collect::<Vec<_>>(),
        "KeySchema": keys.iter().map(key).collect::<Vec<_>>()});
    asked(address, "CreateTable", &body);
    let describe = json!({"TableName": table});
    until("the table is not made", || {
        asked(address, "DescribeTable", &describe)["Table"]["TableStatus"] == "ACTIVE"
    });
}

/// A lock of the shared table, which is there.
fn shared() -> Store {
    let store = Store::at(&shared_dynalite().url());
    assert_eq!(store.run(&["run", "true"]).code, 0);
    store
}

/// The same lock, asked for through something that may answer in place of the server.
fn injected(store: &Store) -> (Injector, Store) {
    let injector = Injector::before(shared_dynalite().address());
    let through = store.through(&dynamodb_at(injector.address()));
    (injector, through)
}

/// One line that says why, and what to do; nothing was run; and no secret is in it.
fn is_refused(store: &Store, args: &[&str], why: &str) {
    let ended = store.run(args);
    assert!(
        ended.code == 1 && ended.stderr.contains(why) && ended.stderr.contains(" (hint: "),
        "{why}: {ended:?}"
    );
    assert!(ended.stderr.lines().count() == 1 && !ended.stderr.contains("hunter2"), "{ended:?}");
    assert!(!ended.stderr.contains("whether it was changed"), "{ended:?}");
    assert!(!store.locks.dir().join("ran").exists());
}

/// The policy that users are told to have, with or without some actions.
fn documented(without: &[&str]) -> String {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/stores.md"))
        .expect("it is there");
    let (_, rest) = text.split_once("```json\n").expect("a policy");
    let mut policy: Value =
        serde_json::from_str(rest.split("```").next().expect("its end")).expect("JSON");
    for statement in policy["Statement"].as_array_mut().expect("statements") {
        let actions = statement["Action"].as_array_mut().expect("actions");
        actions.retain(|action| {
            !without.iter().any(|without| action == &format!("dynamodb:{without}"))
        });
    }
    policy["Statement"]
        .as_array_mut()
        .expect("statements")
        .retain(|statement| statement["Action"] != json!([]));
    policy.to_string()
}

/// As a user with only the permissions of the policy.
fn guest(moto: &Moto) -> Store {
    let (key, secret) = moto.user("etl");
    let secret: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    Store::at(&moto.url().replace("AKIAEXAMPLE:hunter2", &format!("{key}:{secret}")))
}

#[test]
fn the_documented_permissions_are_enough() {
    let moto = Moto::start();
    let store = guest(&moto);
    moto.permit("etl", &documented(&[]));
    moto.obey_permissions();
    let ended = store.run(&["initialize"]);
    assert!(ended.code == 0 && ended.stderr.contains("made the table"), "{ended:?}");
    let mut owner = store.shell();
    owner.lock();
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    let all = store.run(&["status", "--all"]);
    assert!(all.code == 0 && all.stdout.contains(&store.name), "{all:?}");
    owner.unlock();
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let ttl = moto.dynamodb("DescribeTimeToLive", &json!({"TableName": TABLE}).to_string());
    assert!(ttl.contains("ENABLED") && ttl.contains("expires_at"), "{ttl}");

    // A user of an existing table needs none of the other permissions.
    moto.permit("etl", &documented(&["CreateTable", "DescribeTable", "UpdateTimeToLive"]));
    moto.obey_permissions();
    assert_eq!(store.run(&["initialize"]).code, 0);
    assert_eq!(store.run(&["run", "true"]).code, 0);
}

#[test]
fn each_documented_permission_is_needed_and_named_where_it_is_missing() {
    let moto = Moto::start();
    let store = guest(&moto);
    let permit_all_but = |without: &[&str]| {
        moto.permit("etl", &documented(without));
        moto.obey_permissions();
    };
    permit_all_but(&["CreateTable"]);
    for args in [&["lock"][..], &["run", "touch", "ran"], &["initialize"]] {
        is_refused(
            &store,
            args,
            "table `serializer-locks` in `eu-west-1` does not exist, and no permission for \
             `dynamodb:CreateTable`",
        );
        assert!(
            store
                .run(args)
                .stderr
                .contains("`serializer initialize` with that permission creates it")
        );
    }
    // Without the permission to enable expiry, unused items stay.
    permit_all_but(&["UpdateTimeToLive", "DescribeTable"]);
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let refused = |action: &str| {
        format!("no permission for `dynamodb:{action}` on table `serializer-locks` in `eu-west-1`")
    };
    permit_all_but(&["GetItem"]);
    for args in [&["lock"][..], &["run", "touch", "ran"], &["status"], &["wait"], &["unlock"]] {
        is_refused(&store, args, &refused("GetItem"));
    }
    permit_all_but(&["UpdateItem"]);
    for args in [&["lock"][..], &["run", "touch", "ran"], &["initialize"]] {
        is_refused(&store, args, &refused("UpdateItem"));
    }
    permit_all_but(&["Scan"]);
    is_refused(&store, &["status", "--all"], &refused("Scan"));
    assert_eq!(store.run(&["run", "true"]).code, 0);
}

#[test]
fn a_process_that_has_the_wrong_credentials_or_none_is_told_at_once_however_long_it_would_wait() {
    let moto = Moto::start();
    let store = guest(&moto);
    moto.permit("etl", &documented(&[]));
    moto.obey_permissions();
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let (scheme, rest) = store.url.split_once("://").expect("a scheme");
    let (login, rest) = rest.split_once('@').expect("a login");
    let (key, _) = login.split_once(':').expect("a secret");
    for args in [&["lock"][..], &["unlock"], &["run", "touch", "ran"], &["status"], &["wait"]] {
        is_refused(
            &store.through(&format!("{scheme}://{key}:hunter2@{rest}")),
            args,
            "the credentials are not accepted",
        );
        is_refused(
            &store.through(&format!("{scheme}://AKIANOBODY:hunter2@{rest}")),
            args,
            "the credentials are not accepted",
        );
        let bare = store.through(&format!("{scheme}://{rest}"));
        let mut without = bare.serializer(args);
        without.env("AWS_EC2_METADATA_DISABLED", "true");
        let without = ended(&mut without);
        assert!(
            without.code == 1 && without.stderr.contains("no credentials found for AWS (hint: "),
            "{without:?}"
        );
        is_refused(
            &store.through(&format!("{scheme}://{rest}&profile=nobody")),
            args,
            "the profile `nobody` does not exist",
        );
    }
    let nowhere = store.through(&store.url.replace("region=eu-west-1&", ""));
    let nowhere = ended(nowhere.serializer(&["status"]).env("AWS_EC2_METADATA_DISABLED", "true"));
    assert!(nowhere.code == 1 && nowhere.stderr.contains("in which region"), "{nowhere:?}");
}

#[test]
fn credentials_come_from_where_aws_has_them() {
    let moto = Moto::start();
    let store = Store::at(&moto.url());
    let (key, secret) = moto.user("etl");
    moto.permit("etl", &documented(&[]));
    moto.obey_permissions();
    let bare = store.through(&store.url.replace("AKIAEXAMPLE:hunter2@", ""));
    let home = bare.locks.dir();
    fs::create_dir(home.join(".aws")).expect("a directory");
    let profile = format!("[etl]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    fs::write(home.join(".aws/credentials"), profile).expect("a file");
    let runs = |store: &Store, variables: &[(&str, &str)]| {
        let mut command = store.serializer(&["run", "true"]);
        command
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HOME", home)
            .envs(variables.iter().copied());
        ended(&mut command)
    };
    let wrong = [("AWS_ACCESS_KEY_ID", "AKIANOBODY"), ("AWS_SECRET_ACCESS_KEY", "hunter2")];
    assert_eq!(runs(&bare, &wrong).code, 1);
    for ended in [
        runs(&bare, &[("AWS_ACCESS_KEY_ID", &key), ("AWS_SECRET_ACCESS_KEY", &secret)]),
        runs(&bare, &[("AWS_PROFILE", "etl")]),
        // What the address says counts before the variables.
        runs(&bare.through(&format!("{}&profile=etl", bare.url)), &wrong),
    ] {
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    fs::write(home.join("secret"), format!("{secret}\n")).expect("a file");
    let with_key = bare.through(&store.url.replace(":hunter2@", "@").replace("AKIAEXAMPLE", &key));
    let file = home.join("secret");
    let ended = runs(&with_key, &[("SERIALIZER_PASSWORD_FILE", file.to_str().expect("UTF-8"))]);
    assert_eq!(ended.code, 0, "{ended:?}");
}

/// What libraries take for granted, and end the program for.
#[test]
fn what_is_no_part_of_an_address_or_of_a_header_is_said_in_one_line_however_long_it_would_wait() {
    let store = shared();
    let bare = store.through(&store.url.replace("AKIAEXAMPLE:hunter2@", ""));
    let run = |store: &Store, variables: &[(&str, &str)]| {
        let mut command = store.serializer(&["run", "true"]);
        command
            .env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "hunter2")
            .envs(variables.iter().copied());
        ended(&mut command)
    };
    let mounted = run(
        &bare,
        &[("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE\n"), ("AWS_SECRET_ACCESS_KEY", "hunter2\r\n")],
    );
    assert_eq!((mounted.code, mounted.stderr.as_str()), (0, ""));
    let (before, _) = bare.url.split_once("&endpoint=").expect("an endpoint");
    let elsewhere = bare.through(before);
    for (ended, why) in [
        (
            run(&store.through(&store.url.replace("AKIAEXAMPLE", "a%0ab")), &[]),
            "the access key has characters",
        ),
        (run(&bare, &[("AWS_ACCESS_KEY_ID", "a b")]), "the access key has characters"),
        (
            run(&bare, &[("AWS_SESSION_TOKEN", "hunter2\nhunter3")]),
            "the session token has characters",
        ),
        (
            run(&bare.through(&format!("{before}&endpoint=http://a b")), &[]),
            "`endpoint` is not the URL of a server",
        ),
        (
            run(&bare.through(&format!("{before}&endpoint=http://h:99999")), &[]),
            "`endpoint` is not the URL of a server",
        ),
        (
            run(&elsewhere, &[("AWS_ENDPOINT_URL", "http://a b")]),
            "or of the profile is not the URL of a server",
        ),
        (
            run(&elsewhere, &[("AWS_ENDPOINT_URL_DYNAMODB", "http://xn--a")]),
            "or of the profile is not the URL of a server",
        ),
        (
            run(&bare.through(&bare.url.replace("eu-west-1", "eu west")), &[]),
            "the region is not valid",
        ),
    ] {
        // What the address says is known before anything is tried.
        assert!(
            [1, 2].contains(&ended.code)
                && ended.stderr.contains(why)
                && ended.stderr.contains(" (hint: "),
            "{why}: {ended:?}"
        );
        assert!(ended.stderr.lines().count() == 1 && !ended.stderr.contains("hunter"), "{ended:?}");
    }
    let token = bare.locks.dir().join("token");
    fs::write(&token, "hunter3\n").expect("a file");
    let token = token.to_str().expect("UTF-8");
    for (variables, why) in [
        (
            [
                ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
                ("AWS_ROLE_ARN", "arn"),
                ("AWS_ENDPOINT_URL_STS", "http://a b"),
            ],
            "invalid uri",
        ),
        (
            [
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/"),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
                ("AWS_EC2_METADATA_DISABLED", "true"),
            ],
            "AWS's settings cannot be used",
        ),
    ] {
        let ended = ended(bare.serializer(&["run", "true"]).envs(variables));
        assert!(
            ended.code == 1 && ended.stderr.contains(why) && ended.stderr.contains(" (hint: "),
            "{why}: {ended:?}"
        );
        assert!(ended.stderr.lines().count() == 1 && !ended.stderr.contains("hunter"), "{ended:?}");
    }
    let config = bare.locks.dir().join("config");
    fs::write(&config, "[default]\nendpoint_url = http://a b\n").expect("a file");
    let ended = run(&elsewhere, &[("AWS_CONFIG_FILE", config.to_str().expect("UTF-8"))]);
    assert!(
        ended.code == 1
            && ended.stderr.contains("or of the profile is not the URL")
            && ended.stderr.lines().count() == 1,
        "{ended:?}"
    );
}

#[test]
fn too_many_requests_are_waited_for_and_take_no_lock_away() {
    let (code, text) =
        ("ThrottlingException", "Throughput exceeds the current capacity of your table");
    for (status, code) in [
        (400, code),
        (400, "ProvisionedThroughputExceededException"),
        (400, "RequestLimitExceeded"),
    ] {
        let store = Store { lease: RENEWED.to_owned(), ..shared() };
        let (injector, through) = injected(&store);
        injector.refuse("GetItem", usize::MAX, &dynamodb_error(status, code, text));
        is_refused(&through, &["lock", "-n"], "too many requests for table `serializer-locks`");
        injector.mend();
        injector.refuse("UpdateItem", usize::MAX, &dynamodb_error(status, code, text));
        is_refused(
            &through,
            &["run", "-n", "touch", "ran"],
            "too many requests for table `serializer-locks`",
        );
        assert_eq!(store.state(), "free");
        let waiter = Logged::start(&through, &["run", "true"]);
        waiter.until_said("too many requests");
        injector.mend();
        let (ended, said) = waiter.end();
        assert_eq!(ended, 0, "{said}");

        let mut owner = through.shell();
        owner.lock();
        let before = faults::renewals(&store);
        injector.refuse("UpdateItem", 3, &dynamodb_error(status, code, text));
        until("it does not try again", || injector.is_through());
        until("it is not renewed", || faults::renewals(&store) > before);
        until_renewed(&store);
        owner.unlock();
    }
}

#[test]
fn what_dynamodb_says_no_to_is_told_at_once() {
    for (code, why) in [
        ("ExpiredTokenException", "the credentials have expired"),
        ("UnrecognizedClientException", "the credentials are not accepted"),
        ("InvalidSignatureException", "the credentials are not accepted"),
        ("AccessDeniedException", "no permission for `dynamodb:"),
    ] {
        let store = shared();
        let (injector, through) = injected(&store);
        for marker in ["GetItem", "UpdateItem"] {
            injector.mend();
            let said = "The security token included in the request is no good";
            injector.refuse(marker, usize::MAX, &dynamodb_error(400, code, said));
            is_refused(&through, &["run", "touch", "ran"], why);
        }
        assert_eq!(store.state(), "free");
    }
}

#[test]
fn a_write_that_fails_within_dynamodb_is_asked_about_and_counts_once_whether_it_was_done_or_not() {
    for (status, code) in
        [(500, "InternalServerError"), (503, "ServiceUnavailable"), (400, "SomethingNew")]
    {
        for is_done in [false, true] {
            let store = shared();
            let (injector, through) = injected(&store);
            let answer = dynamodb_error(
                status,
                code,
                "The request processing has failed because of an unknown error",
            );
            let fail = |times| match is_done {
                true => injector.misreport("UpdateItem", times, &answer),
                false => injector.refuse("UpdateItem", times, &answer),
            };
            // An error of an unknown kind is not sent again, but the write may have been done.
            fail(usize::MAX);
            let ended = through.run(&["run", "-n", "touch", "ran"]);
            assert!(
                ended.code == 1 && ended.stderr.contains("the write may or may not have happened"),
                "{ended:?}"
            );
            injector.mend();
            assert_eq!(store.run(&["unlock", "--force"]).code, if is_done { 0 } else { 1 });
            if status == 400 {
                continue;
            }
            let number = |store: &Store| {
                item(store)["version"]["N"].as_str().and_then(|text| text.parse::<u64>().ok())
            };
            let before = number(&store).expect("a number");
            fail(1);
            let mut owner = through.shell();
            owner.lock();
            assert!(injector.is_through());
            // Of a write that was done twice, the second one would have another number than was
            // granted.
            let locked = number(&store).expect("a number");
            assert!(locked > before && store.holder("fencing_token").as_u64() == Some(locked));
            fail(1);
            owner.unlock();
            assert!(injector.is_through());
            assert!(number(&store) > Some(locked));
            assert_eq!(store.state(), "free");
        }
    }
}

#[test]
fn an_item_stays_with_its_number_and_only_a_free_one_may_be_removed_and_that_not_for_weeks() {
    let store = shared();
    let mut owner = store.shell();
    owner.lock();
    let held = item(&store);
    assert!(held["record"]["S"].is_string() && held["expires_at"].is_null(), "{held}");
    owner.unlock();
    let free = item(&store);
    assert!(free["record"].is_null() && free["version"]["N"].is_string(), "{free}");
    let expires: u64 =
        free["expires_at"]["N"].as_str().and_then(|text| text.parse().ok()).expect("a time");
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(expires > now + 30 * 24 * 3600, "{free}");
    owner.lock();
    assert!(item(&store)["expires_at"].is_null());
    owner.unlock();
}

#[test]
fn what_only_tells_how_an_acquisition_went_is_removed_in_the_end_as_well() {
    let store = Store { lease: RENEWED.to_owned(), ..shared() };
    let expires = |item: &Value| item["expires_at"]["N"].is_string();
    // A waiter elsewhere may need the entry of that success.
    assert_eq!(store.run(&["run", "--wait-and-skip", "true"]).code, 0);
    let succeeded = item(&store);
    assert!(
        succeeded["record"]["S"].as_str().expect("a record").contains("released=succeeded")
            && expires(&succeeded),
        "{succeeded}"
    );
    let mut owner = store.shell();
    owner.lock();
    until_renewed(&store);
    assert!(!expires(&item(&store)));
    // Taken away by force, it is left for its owner to be told.
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    let lost = item(&store);
    assert!(
        lost["record"]["S"].as_str().expect("a record").contains("released=lost") && expires(&lost),
        "{lost}"
    );
    // A holder beside such an entry is never removed.
    let mut other = store.shell();
    other.lock();
    assert!(
        item(&store)["record"]["S"].as_str().expect("a record").contains("released=lost")
            && !expires(&item(&store))
    );
    other.unlock();
    assert!(expires(&item(&store)));
}

/// Costs, which docs/stores.md tells, in units of capacity as the emulator counts them.
#[test]
fn so_many_units_are_needed() {
    // Long enough for each answer to come in time.
    let store = Store { lease: "12".to_owned(), ..shared() };
    let (injector, through) = injected(&store);
    injector.meter();
    let units = || {
        let costs = injector.take_costs();
        let of = |asked: &str| {
            costs.iter().filter(|(action, _)| action == asked).map(|(_, units)| units).sum::<f64>()
        };
        let (reads, writes) = (of("GetItem"), of("UpdateItem"));
        assert!(
            (reads + writes - costs.iter().map(|(_, units)| units).sum::<f64>()).abs() < 0.1,
            "{costs:?}"
        );
        (reads, writes)
    };
    let mut owner = through.shell();
    owner.lock();
    assert_eq!(units(), (1.0, 1.0), "lock");
    // Looked at by another way, which is not counted.
    until_renewed(&store);
    let (reads, writes) = units();
    assert!(
        writes >= 1.0 && (0.0..=1.0).contains(&(reads - writes)),
        "a renewal is a look and a write: {reads} {writes}"
    );
    owner.unlock();
    let patient = Store { lease: "600".to_owned(), ..through.through(&through.url) };
    units();
    let mut owner = patient.shell();
    owner.lock();
    units();
    owner.unlock();
    assert_eq!(units(), (1.0, 1.0), "unlock");
    assert_eq!(patient.run(&["run", "true"]).code, 0);
    assert_eq!(units(), (2.0, 2.0), "run");
    let once = || patient.run(&["once", &patient.name, "--", "true"]).code;
    assert_eq!((once(), units()), (0, (2.0, 2.0)), "the run of a key");
    assert_eq!((once(), units()), (0, (1.0, 0.0)), "a key that is done");
    assert_eq!(patient.run(&["status"]).code, 0);
    assert_eq!(units(), (1.0, 0.0), "status");
    owner.lock();
    units();
    let waiter = Logged::start(&patient, &["run", "true"]);
    let mut looks = 0.0;
    until("it does not look again", || {
        let (reads, writes) = units();
        assert!(writes < 0.1, "who waits writes nothing");
        looks += reads;
        looks > 2.5
    });
    owner.unlock();
    assert_eq!(waiter.end().0, 0);
}

#[test]
fn numbers_do_not_go_back_when_an_item_is_removed() {
    let store = shared();
    let token =
        |store: &Store| store.run(&["run", "sh", "-c", "echo $SERIALIZER_FENCING_TOKEN"]).stdout;
    let before: u64 = token(&store).trim().parse().expect("a number");
    asked(
        shared_dynalite().address(),
        "DeleteItem",
        &json!({"TableName": TABLE, "Key": {"name": {"S": store.name}}}),
    );
    let after: u64 = token(&store).trim().parse().expect("a number");
    assert!(after > before, "{after} {before}");
}

#[test]
fn a_holder_loses_its_lock_if_its_item_is_removed() {
    let store = Store { lease: RENEWED.to_owned(), ..shared() };
    let mut owner = store.shell();
    owner.lock();
    asked(
        shared_dynalite().address(),
        "DeleteItem",
        &json!({"TableName": TABLE, "Key": {"name": {"S": store.name}}}),
    );
    let mut other = store.shell();
    other.lock();
    assert_eq!(owner.run(r#""$S" unlock 2> /dev/null"#), 77);
    other.unlock();
}

#[test]
fn what_another_program_has_stored_is_neither_overwritten_nor_listed() {
    let (store, address) = (shared(), shared_dynalite().address());
    for (attributes, why) in [
        (json!({"record": {"S": "mine"}, "cost": {"N": "7"}}), "not a lock record"),
        (
            json!({"version": {"N": "7"}, "format": {"N": "1"}, "record": {"B": "AQ=="}}),
            "not a lock record",
        ),
        (json!({"version": {"N": "7.5"}, "format": {"N": "1"}}), "not a lock record"),
        (json!({"version": {"N": "7"}, "format": {"N": "2"}}), "a newer version"),
    ] {
        let mut foreign = attributes;
        foreign["name"] = json!({"S": store.name});
        asked(address, "PutItem", &json!({"TableName": TABLE, "Item": foreign}));
        for args in [&["lock"][..], &["run", "touch", "ran"], &["status"], &["unlock", "--force"]] {
            is_refused(&store, args, why);
        }
        assert_eq!(item(&store), foreign);
        let all = store.run(&["status", "--all"]);
        assert!(all.code == 0 && !all.stdout.contains(&store.name), "{all:?}");
    }
    asked(address, "DeleteItem", &json!({"TableName": TABLE, "Key": {"name": {"S": store.name}}}));
    assert_eq!(store.run(&["run", "true"]).code, 0);
}

#[test]
fn a_table_that_is_there_already_serves_under_the_name_of_its_key() {
    let address = shared_dynalite().address();
    make_table(address, "jobs", &[("job id", "S", "HASH")]);
    let url = shared_dynalite().url().replace(TABLE, "jobs");
    is_refused(
        &Store::at(&url),
        &["run", "touch", "ran"],
        "the key of table `jobs` in `eu-west-1` is not just the text `name`",
    );
    let store = Store::at(&format!("{url}&key=job id"));
    let mut owner = store.shell();
    owner.lock();
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    assert!(store.run(&["status", "--all"]).stdout.contains(&store.name));
    owner.unlock();
    assert_eq!(store.state(), "free");
}

#[test]
fn a_table_with_a_sort_key_or_a_key_of_another_type_is_refused() {
    let address = shared_dynalite().address();
    make_table(address, "sorted", &[("name", "S", "HASH"), ("at", "N", "RANGE")]);
    make_table(address, "numbered", &[("name", "N", "HASH")]);
    for table in ["sorted", "numbered"] {
        let store = Store::at(&shared_dynalite().url().replace(TABLE, table));
        for args in [&["lock"][..], &["run", "touch", "ran"], &["initialize"], &["status"]] {
            is_refused(
                &store,
                args,
                &format!("the key of table `{table}` in `eu-west-1` is not just the text `name`"),
            );
        }
    }
}

#[test]
fn all_that_is_held_is_listed_however_large_the_table_is() {
    let dynalite = Dynalite::start();
    let store = Store::at(&dynalite.url());
    assert_eq!(store.run(&["run", "true"]).code, 0);
    // More than two megabytes, of which a page is one.
    for number in 0..8 {
        let item =
            json!({"name": {"S": format!("large {number}")}, "x": {"S": "x".repeat(300_000)}});
        asked(dynalite.address(), "PutItem", &json!({"TableName": TABLE, "Item": item}));
    }
    let mut owner = store.shell();
    let names: Vec<_> = (0..12).map(|number| format!("lock {number:02}")).collect();
    for name in &names {
        assert_eq!(owner.run(&format!(r#""$S" lock --file-name '{name}' 2> /dev/null"#)), 0);
    }
    let all = store.run(&["status", "--all"]);
    // Below the store and the names of the columns.
    let rows = all.stdout.lines().skip(2);
    let listed: Vec<_> = rows.map(|row| row.split("  ").next().unwrap_or_default()).collect();
    assert_eq!(listed, names, "{all:?}");
}

#[test]
fn of_many_processes_that_are_the_first_to_use_a_table_one_gets_the_lock_and_the_others_wait() {
    let dynalite = Dynalite::start();
    let store = Store::at(&dynalite.url());
    fs::write(store.locks.dir().join("counter"), "0\n").expect("it can be written");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let count = "read -r n < counter; sleep 0.01; echo $((n + 1)) > counter";
                let ended = store.run(&["run", "sh", "-c", count]);
                assert_eq!(ended.code, 0, "{ended:?}");
            });
        }
    });
    assert_eq!(fs::read_to_string(store.locks.dir().join("counter")).expect("it is there"), "8\n");
}

#[test]
fn a_table_that_is_being_deleted_is_made_again_when_it_is_gone() {
    let dynalite = Dynalite::start();
    let store = Store::at(&dynalite.url());
    assert_eq!(store.run(&["run", "true"]).code, 0);
    asked(dynalite.address(), "DeleteTable", &json!({"TableName": TABLE}));
    let waiter = Logged::start(&store, &["run", "true"]);
    let (code, said) = waiter.end();
    assert!(code == 0 && said.contains("made the table"), "{said}");
}

#[test]
fn nothing_is_shown_of_a_secret_however_much_is_to_be_said() {
    let store = shared();
    let mut command = store.serializer(&["run", "true"]);
    command.env("LOG_LEVEL", "trace").env("AWS_SESSION_TOKEN", "hunter3");
    let ended = ended(&mut command);
    assert!(
        ended.code == 0 && !ended.stderr.contains("hunter") && !ended.stderr.contains("Signature"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.lines().all(|line| line.starts_with("serializer: "))
            && ended.stderr.lines().count() < 10,
        "{ended:?}"
    );
}
