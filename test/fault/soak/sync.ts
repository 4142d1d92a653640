/**
 * State in memory stays equal to the database, whatever fails.
 * `node test/fault/soak/sync.ts [seconds] [--backend redis|amqp] [--no-outbox]`, 60 seconds on Redis by default.
 *
 * Ends with what happened, and with 1 if instances disagree with the database after the bound, or if a task was lost.
 * Without the outbox that is what is to be seen: it then ends with 0.
 */
import { parseArgs } from "node:util"
import * as Effect from "effect/Effect"
import { run } from "./sync-cluster.ts"

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { backend: { type: "string", default: "redis" }, "no-outbox": { type: "boolean", default: false } }
})
const backend = values.backend === "amqp" ? "amqp" : "redis"
const outbox = !values["no-outbox"]

const outcome = await Effect.runPromise(
  Effect.scoped(run({ seconds: Number(positionals[0] ?? 60), backend, outbox, boundMillis: 30_000 }))
)
console.log({ backend, outbox, ...outcome })
const isWell = outcome.agreedMillis !== undefined && outcome.tasksLost === 0 && outcome.tasksUndone === 0
process.exit(isWell || !outbox ? 0 : 1)
