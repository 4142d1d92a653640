import type { Suite } from "../bench.ts"
import { cacheGet, cacheSet, cacheSetOne } from "./cache.ts"
import { lockContended, lockMany, lockOne } from "./lock.ts"
import { fanoutLatency, fanoutRate } from "./pubsub.ts"
import { queueDrain16, queueDrain100, queueIdle, queuePublish } from "./queue.ts"
import { url } from "./server.ts"

/** On a broker of its own, against the raw client and against what one would use instead. */
export const suite: Suite = {
  name: "amqp",
  prepare: async () => {
    process.env.AMQP_URL ||= await url()
  },
  workloads: [
    queuePublish,
    queueDrain16,
    queueDrain100,
    queueIdle,
    cacheGet,
    cacheSetOne,
    cacheSet,
    lockOne,
    lockMany,
    lockContended,
    fanoutRate,
    fanoutLatency
  ]
}
