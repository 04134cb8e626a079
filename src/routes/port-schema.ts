import { z } from "@hono/zod-openapi";
import { isId } from "../core/ids.ts";
import { namePattern } from "../core/names.ts";
import type { Protocol, PublishRequest } from "../core/port.ts";
import { invalidRequest } from "./problem.ts";

const portNumber = z.int().min(1).max(65_535);

export const PortCreate = z
  .strictObject({
    containerId: z
      .string()
      .refine((text) => isId("container", text) || namePattern.test(text), "Is not a container's id or name")
      .openapi({ description: "The container's id or name.", example: "ctr_0q3xr5kkp8wmz2v9d1hc" }),
    containerPort: portNumber.openapi({ example: 8080 }),
    hostPort: portNumber
      .optional()
      .openapi({ description: "By default the next free one of the host's range.", example: 8000 }),
    protocol: z.enum(["tcp", "udp"]).default("tcp"),
    hostAddress: z
      .ipv4()
      .optional()
      .openapi({ description: "By default all of the host's addresses.", example: "127.0.0.1" }),
  })
  .openapi("PortCreate");

/** A request as it is planned with: what was not given is absent. */
export function publishRequest(asked: Omit<z.infer<typeof PortCreate>, "containerId">): PublishRequest {
  return {
    containerPort: asked.containerPort,
    protocol: asked.protocol,
    ...(asked.hostPort === undefined ? {} : { hostPort: asked.hostPort }),
    ...(asked.hostAddress === undefined ? {} : { hostAddress: asked.hostAddress }),
  };
}

export const Port = z
  .object({
    id: z.string().openapi({ example: "prt_0q3xr5kkp8wmz2v9d1hc" }),
    containerId: z.string().openapi({ example: "ctr_0q3xr5kkp8wmz2v9d1hc" }),
    containerPort: z.int().openapi({ example: 8080 }),
    hostPort: z.int().openapi({ example: 8000 }),
    protocol: z.enum(["tcp", "udp"]),
    hostAddress: z.string().openapi({ description: "`0.0.0.0`: all of the host's.", example: "0.0.0.0" }),
    hostId: z.string().openapi({ example: "hst_0q3xr5kkp8wmz2v9d1hc" }),
    endpoint: z.string().openapi({ description: "Where clients reach it.", example: "203.0.113.5:8000" }),
    status: z
      .enum(["pending", "active", "removing"])
      .openapi({ description: "`pending`: the host has not applied it yet, or the container does not run." }),
  })
  .openapi("Port");

/** A port as clients see it. `publicAddress`: where the host is reached. */
export function portView(port: {
  id: string;
  containerId: string;
  containerPort: number;
  hostPort: number;
  protocol: Protocol;
  hostAddress: string;
  hostId: string;
  publicAddress: string;
  status: "pending" | "active" | "removing";
}): z.infer<typeof Port> {
  const address = port.hostAddress === "0.0.0.0" ? port.publicAddress : port.hostAddress;
  return {
    id: port.id,
    containerId: port.containerId,
    containerPort: port.containerPort,
    hostPort: port.hostPort,
    protocol: port.protocol,
    hostAddress: port.hostAddress,
    hostId: port.hostId,
    endpoint: `${address}:${String(port.hostPort)}`,
    status: port.status,
  };
}

/** @throws BerthError `invalid_request` when two of the ports are one host port. `at`: where they are in the body. */
export function checkPorts(ports: readonly PublishRequest[], at = "/ports"): void {
  const seen = new Set<string>();
  ports.forEach((port, index) => {
    if (port.hostPort === undefined) return;
    const key = `${port.protocol} ${String(port.hostPort)} ${port.hostAddress ?? ""}`;
    if (seen.has(key))
      throw invalidRequest([{ pointer: `${at}/${String(index)}/hostPort`, detail: "Is there twice." }]);
    seen.add(key);
  });
}
