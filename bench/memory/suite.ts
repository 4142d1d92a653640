import type { Suite } from "../bench.ts"
import { broadcast } from "./broadcast.ts"
import { cacheGet, cacheWrap } from "./cache.ts"
import { lockContended, lockUncontended } from "./lock.ts"
import { queueDrain } from "./queue.ts"

/** The embedded default, against what one would use inside one process. */
export const suite: Suite = {
  name: "memory",
  workloads: [cacheGet, cacheWrap, lockUncontended, lockContended, queueDrain, broadcast]
}
