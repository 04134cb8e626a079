import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { ConfigError, readConfig } from "../../src/config.ts";

describe("settings", () => {
  test("have defaults", () => {
    const config = readConfig({ HOME: "/home/x" });
    expect(config.listen).toEqual({ host: "127.0.0.1", port: 7070 });
    expect(config.role).toBe("all");
    expect(config.demo).toBe(true);
    expect(config.portRange).toEqual({ first: 8000, last: 8999 });
    expect(config.databaseUrl).toBeNull();
  });

  test("an empty variable is an unset one", () => {
    expect(readConfig({ BERTH_DATABASE_URL: "", BERTH_LISTEN: "" }).databaseUrl).toBeNull();
  });

  test("an instance is known by its data directory, however it is written", () => {
    const [a, b, c] = ["/data/a", "/data/x/../a/", "/data/c"].map((dir) => readConfig({ BERTH_DATA_DIR: dir }));
    expect(a?.instance).toMatch(/^[0-9a-f]{6}$/);
    expect(b?.instance).toBe(a?.instance);
    expect(c?.instance).not.toBe(a?.instance);
  });

  test("children are told the run directory", () => {
    expect(readConfig({ BERTH_RUN_DIR: "/run/berth/abc123" }).runDir).toBe("/run/berth/abc123");
  });

  test("a host's name, labels and addresses are parsed", () => {
    const config = readConfig({
      BERTH_HOST_NAME: "rack-1.example",
      BERTH_HOST_LABELS: "zone=a, disk=ssd,empty=",
      BERTH_AGENT_LISTEN: "10.0.0.2:7072",
      BERTH_API_URL: "tls://10.0.0.1:7071/",
    });
    expect(config).toMatchObject({
      hostName: "rack-1.example",
      hostLabels: { zone: "a", disk: "ssd", empty: "" },
      agentListen: { host: "10.0.0.2", port: 7072 },
      apiUrl: "tls://10.0.0.1:7071",
    });
    for (const [name, bad] of [
      ["BERTH_HOST_NAME", "a b"],
      ["BERTH_HOST_LABELS", "zone"],
      ["BERTH_AGENT_LISTEN", "7072"],
      ["BERTH_API_URL", "10.0.0.1:7071"],
    ] as const) {
      expect(() => readConfig({ [name]: bad })).toThrow(new RegExp(`^${name}: [^\\n]+$`));
    }
  });

  test("lists and mirrors are parsed", () => {
    const config = readConfig({
      BERTH_REGISTRY_MIRRORS: "docker.io=http://127.0.0.1:5000/, ghcr.io=https://mirror.example",
      BERTH_INSECURE_REGISTRIES: "127.0.0.1:5000, ,",
    });
    expect([...config.registryMirrors]).toEqual([
      ["docker.io", "http://127.0.0.1:5000"],
      ["ghcr.io", "https://mirror.example"],
    ]);
    expect([...config.insecureRegistries]).toEqual(["127.0.0.1:5000"]);
  });

  test("private networks that containers may reach are CIDR blocks", () => {
    const of = (text: string) => readConfig({ BERTH_EGRESS_ALLOW: text }).egressAllow;
    expect(of("")).toEqual([]);
    expect(of("10.1.0.0/16, 192.168.7.7,fd12::/48")).toEqual(["10.1.0.0/16", "192.168.7.7", "fd12::/48"]);
    for (const bad of ["10.0.0.0/33", "fd12::/129", "mirror.example", "10.0.0.0/8 }; flush ruleset", "fe80::1%eth0"]) {
      expect(() => of(bad)).toThrow(/^BERTH_EGRESS_ALLOW: [^\n]+$/);
    }
  });

  test("a blob store is a directory or a bucket", () => {
    const credentials = { BERTH_S3_ACCESS_KEY_ID: "id", BERTH_S3_SECRET_ACCESS_KEY: "secret" };
    const of = (text: string) =>
      readConfig({ BERTH_BLOB_STORE: text, BERTH_DATA_DIR: "/data", ...credentials }).blobStore;
    expect(of("")).toEqual({ kind: "file", directory: "/data/blobs" });
    expect(of("file:")).toEqual({ kind: "file", directory: "/data/blobs" });
    expect(of("file:/srv/blobs/")).toEqual({ kind: "file", directory: "/srv/blobs" });
    expect(of("s3://images")).toMatchObject({ endpoint: new URL("https://s3.us-east-1.amazonaws.com"), prefix: "" });
    expect(of("s3://images/berth/a/?endpoint=http://127.0.0.1:9000&region=eu-1")).toEqual({
      kind: "s3",
      endpoint: new URL("http://127.0.0.1:9000"),
      region: "eu-1",
      bucket: "images",
      prefix: "berth/a/",
    });
    const read = () => readConfig({ BERTH_BLOB_STORE: "s3://images" });
    expect(read).toThrow(/^BERTH_S3_ACCESS_KEY_ID: [^\n]+$/);
    const aws = { AWS_ACCESS_KEY_ID: "a", AWS_SECRET_ACCESS_KEY: "b", AWS_SESSION_TOKEN: "c" };
    expect(readConfig({ BERTH_BLOB_STORE: "s3://images", ...aws }).bucketCredentials).toEqual({
      accessKeyId: "a",
      secretAccessKey: "b",
      sessionToken: "c",
    });
  });

  test.each([
    ["BERTH_BLOB_STORE", "http://x"],
    ["BERTH_BLOB_STORE", "file://host/dir"],
    ["BERTH_BLOB_STORE", "s3://"],
    ["BERTH_BLOB_STORE", "s3://images?colour=red"],
    ["BERTH_BLOB_STORE", "s3://images?endpoint=ftp://x"],
    ["BERTH_BLOB_STORE", "s3://images/a%2fb"],
    ["BERTH_INTERNAL_LISTEN", "7071"],
    ["BERTH_INTERNAL_CA", "ca.pem"],
    ["BERTH_ROLE", "boss"],
    ["BERTH_LISTEN", "7070"],
    ["BERTH_LISTEN", "127.0.0.1:70700"],
    ["BERTH_DATABASE_URL", "mysql://x"],
    ["BERTH_ADMIN_TOKEN", "short"],
    ["BERTH_SECRET_KEY", "short"],
    ["BERTH_DEMO", "yes"],
    ["BERTH_RUNTIME", "docker"],
    ["BERTH_RUN_DIR", "run"],
    ["BERTH_PORT_RANGE", "9000-8000"],
    ["BERTH_PORT_RANGE", "8000"],
    ["BERTH_PORT_RANGE", "0-70000"],
    ["BERTH_REGISTRY_MIRRORS", "docker.io"],
    ["BERTH_LOG_LEVEL", "loud"],
  ])("%s=%s stops the start with one line that names it", (name, value) => {
    const read = () => readConfig({ [name]: value });
    expect(read).toThrow(ConfigError);
    expect(read).toThrow(new RegExp(`^${name}: [^\\n]+$`));
  });
});

test("every setting is in the documentation, and nothing that is none", () => {
  const named = (path: string) => {
    const text = readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
    return new Set(text.match(/\bBERTH_[A-Z0-9]+(?:_[A-Z0-9]+)*\b/g));
  };
  // Put together from two parts there; the last is infra/bootstrap.mjs's.
  const more = ["BERTH_S3_ACCESS_KEY_ID", "BERTH_S3_SECRET_ACCESS_KEY", "BERTH_S3_SESSION_TOKEN", "BERTH_NO_INSTALL"];
  const read = [...named("src/config.ts"), ...more].filter((name) => name !== "BERTH_S3");
  expect([...named("docs/configuration.md")].sort()).toEqual([...new Set(read)].sort());
});
