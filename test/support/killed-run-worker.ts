/** A run of tests that is killed: with a container and a network, it tells of them and then waits. */
import { TestNetwork } from "./network.ts";
import { claimNumber, claimPorts } from "./ownership.ts";
import { TestHost } from "./sandboxes.ts";

const host = await TestHost.create();
await host.start();
const network = await TestNetwork.create();
await network.serve("host", "page", "0.0.0.0:8000");
const holders = [network.host.pid, network.outside.pid];
console.log(
  JSON.stringify({ config: host.config, holders, number: claimNumber(host.config.instance, 1), ports: claimPorts() }),
);
setInterval(() => undefined, 1000);
