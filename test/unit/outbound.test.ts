import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { HttpClient, readBody } from "../../src/image/http.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";

describe("addresses", () => {
  const policy = new OutboundPolicy([]);
  test.each([
    "127.0.0.1",
    "127.255.0.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "0:0:0:0:0:ffff:a9fe:a9fe",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:1::1",
    "2001:db8::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "localhost",
    "",
  ])("refuses %s", (address) => {
    expect(policy.allows(address)).toBe(false);
  });
  test.each(["1.1.1.1", "172.32.0.1", "100.128.0.1", "::ffff:8.8.8.8", "2606:4700::1111", "2a00:1450::1"])(
    "allows %s",
    (address) => {
      expect(policy.allows(address)).toBe(true);
    },
  );

  test("what the operator allows is allowed, in every spelling, and nothing beside it", () => {
    const open = new OutboundPolicy(["127.0.0.0/8", "10.1.0.0/16", "fd00::/64", "192.168.1.1"]);
    for (const address of ["127.0.0.1", "::ffff:127.0.0.1", "10.1.255.1", "fd00::5", "192.168.1.1"]) {
      expect(open.allows(address), address).toBe(true);
    }
    for (const address of ["10.2.0.1", "::1", "fd00:0:0:1::", "192.168.1.2"])
      expect(open.allows(address), address).toBe(false);
  });

  test.each(["x", "10.0.0.0/33", "10.0.0.0/x", "/8", "::/129"])("refuses the block %s", (block) => {
    expect(() => new OutboundPolicy([block])).toThrow(RangeError);
  });
});

describe("connections", () => {
  const server = createServer((_, response) => response.end("reached"));
  let port: number;
  beforeAll(async () => {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    port = (server.address() as AddressInfo).port;
  });
  afterAll(() => {
    server.close();
  });

  const reach = async (url: string, allow: string[] = [], trusted: string[] = []): Promise<string> => {
    const http = new HttpClient(new OutboundPolicy(allow, trusted), 5000);
    try {
      const response = await http.send({
        method: "GET",
        url: new URL(url),
        headers: {},
        signal: new AbortController().signal,
      });
      return (await readBody(response, 100))?.toString() ?? "";
    } finally {
      http.close();
    }
  };

  // `localhost` is resolved when it is connected to, as a name that an attacker points at us would be.
  test.each(["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.1", "0x7f000001", "2130706433"])(
    "to %s are refused, and reach it with the protection off",
    async (host) => {
      const url = `http://${host}:${String(port)}/`;
      await expect(reach(url)).rejects.toMatchObject({ code: "address_refused" });
      expect(await reach(url, ["127.0.0.0/8"])).toBe("reached");
    },
  );

  test("to an origin that the operator set up are made; its other ports and schemes are not meant", async () => {
    const origin = `http://127.0.0.1:${String(port)}`;
    expect(await reach(`${origin}/x`, [], [origin])).toBe("reached");
    await expect(reach(`${origin}/x`, [], ["http://127.0.0.1:1"])).rejects.toMatchObject({ code: "address_refused" });
  });

  test("only http and https are spoken", async () => {
    await expect(reach("file:///etc/passwd")).rejects.toMatchObject({ code: "invalid_request" });
  });
});
