import type { Suite } from "../bench.ts"
import { cacheGet, cacheGetOne, cacheGetUntraced, cacheNear, cacheSet, cacheWrap } from "./cache.ts"
import { lockContended, lockMany, lockOne, lockWaits } from "./lock.ts"
import { fanoutLatency, fanoutRate, fanoutRateUntraced } from "./pubsub.ts"
import { queueDrain1, queueDrain16, queueDrain100, queueIdle, queuePublish } from "./queue.ts"
import { url } from "./server.ts"

/** On a server of its own, against the raw client and against what one would use instead. */
export const suite: Suite = {
  name: "redis",
  prepare: async () => {
    process.env.REDIS_URL ||= await url()
  },
  workloads: [
    cacheGet,
    cacheGetUntraced,
    cacheGetOne,
    cacheWrap,
    cacheSet,
    cacheNear,
    queuePublish,
    queueDrain1,
    queueDrain16,
    queueDrain100,
    queueIdle,
    lockOne,
    lockMany,
    lockContended,
    lockWaits,
    fanoutRate,
    fanoutRateUntraced,
    fanoutLatency
  ]
}
