import type { Workload } from "../bench.ts"

const subscribers = 3
// What a sync message of a plugin looks like.
const message = { type: "removeField", collection: "orders", field: "status" }

/** One operation is a message published and handled by three subscribers. */
export const broadcast: Workload = {
  name: `broadcast to ${subscribers}`,
  batch: 10_000,
  contenders: [
    {
      name: "cohort",
      setup: "three subscribers on the instance that publishes; each decodes a message of its own",
      make: async () => {
        const Effect = await import("effect/Effect")
        const Schema = await import("effect/Schema")
        const Scope = await import("effect/Scope")
        const { makeRuntime, timedOn } = await import("./cohort.ts")
        const { PubSub, Topic } = await import("../../src/index.ts")
        const runtime = makeRuntime()
        const time = timedOn(runtime)
        const Changed = Topic.make(
          "changed",
          Schema.Struct({ type: Schema.String, collection: Schema.String, field: Schema.String })
        )
        let sum = 0
        const scope = Scope.makeUnsafe()
        for (let i = 0; i < subscribers; i++) {
          await runtime.runPromise(
            PubSub.subscribe(Changed, ({ field }) => Effect.sync(() => (sum += field.length))).pipe(
              Scope.provide(scope)
            )
          )
        }
        const pubsub = await runtime.runPromise(PubSub.PubSub)
        const options = { skipSelf: false }
        let expected = 0
        return async (n) => {
          const elapsed = await time(
            Effect.gen(function* () {
              for (let i = 0; i < n; i++) yield* pubsub.publish(Changed, message, options)
            })
          )
          expected += n * subscribers * message.field.length
          if (sum !== expected) throw new Error("messages are still on their way")
          return elapsed
        }
      }
    },
    {
      name: "effect/PubSub",
      setup: "bounded(1024), three fibers that take in a loop; the clock stops when all have handled the last message",
      goal: 1,
      make: async () => {
        const Effect = await import("effect/Effect")
        const Fiber = await import("effect/Fiber")
        const PubSub = await import("effect/PubSub")
        const { timed } = await import("../bench.ts")
        let sum = 0
        const handler = ({ field }: typeof message) => Effect.sync(() => (sum += field.length))
        return (n) =>
          timed(() =>
            Effect.runPromise(
              Effect.scoped(
                Effect.gen(function* () {
                  const pubsub = yield* PubSub.bounded<typeof message>(1_024)
                  const fibers = []
                  for (let i = 0; i < subscribers; i++) {
                    const subscription = yield* PubSub.subscribe(pubsub)
                    fibers.push(
                      yield* Effect.forkChild(
                        Effect.gen(function* () {
                          for (let i = 0; i < n; i++) yield* handler(yield* PubSub.take(subscription))
                        })
                      )
                    )
                  }
                  for (let i = 0; i < n; i++) yield* PubSub.publish(pubsub, message)
                  for (const fiber of fibers) yield* Effect.asVoid(Fiber.join(fiber))
                })
              )
            )
          )
      }
    },
    {
      name: "effect/PubSub, takeAll",
      setup: "the same, but a subscriber takes all that waits at a time",
      goal: 1,
      make: async () => {
        const Effect = await import("effect/Effect")
        const Fiber = await import("effect/Fiber")
        const PubSub = await import("effect/PubSub")
        const { timed } = await import("../bench.ts")
        let sum = 0
        const handler = ({ field }: typeof message) => Effect.sync(() => (sum += field.length))
        return (n) =>
          timed(() =>
            Effect.runPromise(
              Effect.scoped(
                Effect.gen(function* () {
                  const pubsub = yield* PubSub.bounded<typeof message>(1_024)
                  const fibers = []
                  for (let i = 0; i < subscribers; i++) {
                    const subscription = yield* PubSub.subscribe(pubsub)
                    fibers.push(
                      yield* Effect.forkChild(
                        Effect.gen(function* () {
                          let left = n
                          while (left > 0) {
                            const messages = yield* PubSub.takeAll(subscription)
                            left -= messages.length
                            for (const message of messages) yield* handler(message)
                          }
                        })
                      )
                    )
                  }
                  for (let i = 0; i < n; i++) yield* PubSub.publish(pubsub, message)
                  for (const fiber of fibers) yield* Effect.asVoid(Fiber.join(fiber))
                })
              )
            )
          )
      }
    },
    {
      name: "3 awaited handlers (raw)",
      setup: "`await handler(message)` three times: nobody decodes, nobody can be slow",
      make: async () => {
        const { timed } = await import("../bench.ts")
        let sum = 0
        const handlers = Array.from({ length: subscribers }, () => async ({ field }: typeof message) => {
          sum += field.length
        })
        return (n) =>
          timed(async () => {
            for (let i = 0; i < n; i++) for (const handler of handlers) await handler(message)
            return sum
          })
      }
    }
  ]
}
