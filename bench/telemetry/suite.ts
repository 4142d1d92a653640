import type { Suite } from "../bench.ts"
import { drain } from "./drain.ts"

/** What telemetry takes of a queue's throughput: at most 20% at its defaults. */
export const suite: Suite = {
  name: "telemetry",
  prepare: async () => {
    process.env.REDIS_URL ||= await (await import("../redis/server.ts")).url()
  },
  workloads: [drain("memory", 5_000), drain("redis", 6_000)]
}
