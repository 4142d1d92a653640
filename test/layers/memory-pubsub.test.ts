import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Cohort, PubSub, Topic } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"
import { suite } from "../../src/testing/contracts/pubsub.ts"
import { memory } from "./memory.ts"

suite(memory)

describe("PubSub on memory, and the rest of the process", () => {
  for (const options of [{}, { onlySelf: true }]) {
    it.live(`handlers that keep answering each other leave it its turn ${JSON.stringify(options)}`, () =>
      Effect.gen(function* () {
        const hub = yield* MemoryHub.make
        const instances = yield* Effect.forEach(["a", "b"], (id) => Layer.build(Cohort.layerMemory({ hub, id })))
        const Ping = Topic.make("ping", Schema.Int)
        let stop = false
        let last = 0
        for (const instance of instances) {
          yield* PubSub.subscribe(Ping, (n) =>
            Effect.suspend(() => {
              last = n
              return stop ? Effect.void : PubSub.publish(Ping, n + 1, options)
            })
          ).pipe(Effect.provide(instance))
        }
        yield* Effect.forkChild(PubSub.publish(Ping, 1, options).pipe(Effect.provide(instances[0]!)))
        // Only a turn of the event loop can wake this.
        yield* Effect.sleep("20 millis")
        stop = true
        assert.isAbove(last, 1)
      })
    )
  }
})
