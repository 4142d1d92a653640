/** What is refused. */
import { assert } from "@effect/vitest"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { SyncMessage } from "../../../index.ts"
import { type Fixture, publish, receive, refused, resynced } from "./fixture.ts"

export const tests = ({ test, waitFor }: Fixture): void => {
  test("bad input is a typed error that names the field", (cluster) =>
    Effect.gen(function* () {
      const a = yield* cluster.instance()
      const b = yield* cluster.instance()
      const events = yield* receive(b)
      for (const name of ["", "x".repeat(10_000)]) {
        const channel = SyncMessage.make(name, Schema.String)
        yield* refused(publish(a, "text", channel), "channel")
        yield* refused(receive(a, channel), "channel")
      }
      const bad: ReadonlyArray<Duration.Input> = [-1, Number.NaN, Number.POSITIVE_INFINITY, "soon" as never]
      for (const debounce of bad) {
        yield* refused(receive(a, SyncMessage.make("bad", Schema.String, { debounce })), "debounce")
      }
      for (const announceInterval of [0, ...bad]) {
        const layer = SyncMessage.layerWith({ announceInterval }).pipe(Layer.provide(Layer.succeedContext(a.context)))
        yield* refused(Layer.build(layer), "announceInterval")
      }
      yield* refused(publish(a, 1 as never), "message")
      yield* publish(a, "fine")
      yield* waitFor(() => events.includes("fine"), "the message that is fine")
      assert.deepStrictEqual(events, [resynced, "fine"])
    }))
}
