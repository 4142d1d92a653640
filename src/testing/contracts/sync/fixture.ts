/** What the tests of `SyncMessage` share. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { SyncMessage } from "../../../index.ts"
import type { Backend, TestInstance } from "../Backend.ts"
import { support } from "../support.ts"

export const Changes = SyncMessage.make("changes", Schema.String)
/** The same without debounce, for tests that count messages. */
export const Direct = SyncMessage.make("direct", Schema.String, { debounce: 0 })

export const resynced = "resync"

/** Subscribes, and collects the messages handled and the resyncs, in order. */
export const receive = (instance: TestInstance, channel: SyncMessage.SyncChannel<string> = Direct) =>
  Effect.suspend(() => {
    const events: Array<string> = []
    const receiver = {
      handle: (text: string) => Effect.sync(() => events.push(text)),
      resync: Effect.sync(() => events.push(resynced))
    }
    return Effect.as(instance.run(SyncMessage.subscribe(channel, receiver)), events)
  })

export const publish = (instance: TestInstance, text: string, channel = Direct) =>
  instance.run(SyncMessage.publish(channel, text))

export const count = (events: ReadonlyArray<string>, event: string) => events.filter((other) => other === event).length

export const refused = <A, R>(operation: Effect.Effect<A, SyncMessage.SyncMessageError, R>, field: string) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, SyncMessage.SyncMessageError)
    assert.strictEqual(error.reason._tag, "InvalidInput")
    assert.strictEqual(error.reason._tag === "InvalidInput" && error.reason.field, field)
  })

/** What the tests of one backend share. */
export const make = (backend: Backend) => {
  const { test, waitFor, within } = support(backend)

  /** Lets `from` become known to the receivers, and forgets what that caused. */
  const introduce = (from: TestInstance, receivers: ReadonlyArray<Array<string>>, channel = Direct) =>
    Effect.gen(function* () {
      yield* publish(from, "hello", channel)
      yield* waitFor(
        () => receivers.every((events) => events.includes("hello") && events.includes(resynced)),
        "the first message and its resync"
      )
      for (const events of receivers) events.length = 0
    })

  /** A message whose sending fails, because its sender is cut off: a hole in the sender's numbers. */
  const lose = (from: TestInstance, channel = Direct) =>
    Effect.gen(function* () {
      yield* from.disconnect
      const error = yield* Effect.flip(within(6, publish(from, "lost", channel)))
      assert.instanceOf(error, SyncMessage.SyncMessageError)
      assert.strictEqual(error.reason._tag, "Unavailable")
      yield* from.reconnect
    })

  return { backend, test, waitFor, within, introduce, lose }
}

export type Fixture = ReturnType<typeof make>
