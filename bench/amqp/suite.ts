import type { Suite } from "../bench.ts"
import { queueDrain16, queueDrain100, queueIdle, queuePublish } from "./queue.ts"
import { url } from "./server.ts"

/** On a broker of its own, against the raw client and against what one would use instead. */
export const suite: Suite = {
  name: "amqp",
  prepare: async () => {
    process.env.AMQP_URL ||= await url()
  },
  workloads: [queuePublish, queueDrain16, queueDrain100, queueIdle]
}
