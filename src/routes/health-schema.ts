import { z } from "@hono/zod-openapi";
import { type HealthProbe, type HealthSpec, healthDefaults } from "../core/health.ts";

const port = z.int().min(1).max(65_535);
const seconds = (min: number, otherwise: number) => z.number().min(min).max(86_400).default(otherwise);

/** How to tell whether a container works; one of `command`, `http` and `tcp`. */
export const Healthcheck = z
  .strictObject({
    command: z
      .array(z.string().max(32_768))
      .min(1)
      .max(1_000)
      .optional()
      .openapi({ description: "Run in the container; healthy when it exits with 0.", example: ["cat", "/run/ready"] }),
    http: z
      .strictObject({
        port,
        path: z
          .string()
          .max(2_048)
          .regex(/^\/[\x21-\x7e]*$/, "Must be a path")
          .default("/"),
      })
      .optional()
      .openapi({ description: "GET from the host; healthy when the answer's status is 2xx or 3xx." }),
    tcp: z.strictObject({ port }).optional().openapi({ description: "Healthy when the port takes a connection." }),
    intervalSeconds: seconds(0.1, healthDefaults.intervalSeconds),
    timeoutSeconds: seconds(0.1, healthDefaults.timeoutSeconds),
    retries: z
      .int()
      .min(1)
      .max(1_000)
      .default(healthDefaults.retries)
      .openapi({ description: "Failures on end until it is unhealthy." }),
    startPeriodSeconds: seconds(0, healthDefaults.startPeriodSeconds).openapi({
      description: "Until it is healthy, failures in this time after its start don't count.",
    }),
    startIntervalSeconds: seconds(0.05, healthDefaults.startIntervalSeconds).openapi({
      description: "Between checks in that time.",
    }),
  })
  .refine(({ command, http, tcp }) => [command, http, tcp].filter((probe) => probe !== undefined).length === 1, {
    message: "Needs one of `command`, `http` and `tcp`",
  })
  .openapi("Healthcheck", { example: { http: { port: 8080, path: "/healthz" }, intervalSeconds: 10 } });

/** A check as it is kept. */
export function healthOf(asked: z.infer<typeof Healthcheck>): HealthSpec {
  const { command, http, tcp, ...times } = asked;
  const probe: HealthProbe | null =
    command !== undefined ? { command } : http !== undefined ? { http } : tcp !== undefined ? { tcp } : null;
  if (probe === null) throw new Error("the schema lets no check without a probe pass");
  return { probe, ...times };
}

/** A check as clients see it. */
export function healthcheckView({ probe, ...times }: HealthSpec): z.infer<typeof Healthcheck> {
  return { ...probe, ...times };
}
