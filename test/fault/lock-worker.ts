/**
 * One process of a fault test: takes and gives back locks as it is told, a line of JSON each,
 * and says what comes of it. `node lock-worker.ts <url of Redis or RabbitMQ> <app>`
 */
import { createInterface } from "node:readline"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { Instance, Lock } from "../../src/index.ts"
import { lockStore } from "./lockStore.ts"

/** `hold` takes a lock and holds it until `release` names it. */
export type Order =
  | { readonly op: "hold"; readonly name: string; readonly key: string; readonly ttl: number }
  | { readonly op: "release"; readonly name: string }

/**
 * `granted`: the work has begun. `interrupted`: it was stopped. `ended`: the lock is given back, or `reason` says
 * why not.
 */
export interface Report {
  readonly name: string
  readonly what: "granted" | "interrupted" | "ended"
  readonly fence?: number
  readonly reason?: string
}

const runtime = ManagedRuntime.make(
  Lock.layer.pipe(
    Layer.provide(lockStore(process.argv[2]!, { timeout: "1 second" })),
    Layer.provide(Instance.layer({ app: process.argv[3]! })),
    Layer.provideMerge(Logger.layer([]))
  )
)

const say = (report: object) => Effect.sync(() => console.log(JSON.stringify(report)))

const gates = new Map<string, Deferred.Deferred<void>>()

const hold = ({ key, name, ttl }: Extract<Order, { op: "hold" }>) =>
  Effect.gen(function* () {
    const gate = yield* Deferred.make<void>()
    gates.set(name, gate)
    const work = ({ fence }: Lock.Lease) =>
      Effect.andThen(say({ name, what: "granted", fence }), Deferred.await(gate)).pipe(
        Effect.onInterrupt(() => say({ name, what: "interrupted" }))
      )
    yield* Effect.matchEffect(Lock.runExclusive(key, work, { ttl }), {
      onFailure: (error) => say({ name, what: "ended", reason: error.reason._tag }),
      onSuccess: () => say({ name, what: "ended" })
    })
  })

await runtime.runPromise(say({ name: "", what: "ended" }))
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line) as Order
  if (order.op === "hold") runtime.runFork(hold(order))
  else await runtime.runPromise(Deferred.succeed(gates.get(order.name)!, undefined))
}
process.exit()
