/** Who gets a message, when, and how often. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { SyncMessage } from "../../../index.ts"
import { count, Changes, Direct, type Fixture, publish, receive, resynced } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, introduce }: Fixture): void => {
  describe("delivery", () => {
    test("reaches every receiver on every other instance, never the sender", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const c = yield* cluster.instance()
        const own = [yield* receive(a), yield* receive(a)]
        const others = [yield* receive(b), yield* receive(b), yield* receive(c)]
        for (const text of ["one", "two", "three"]) yield* publish(a, text)
        yield* waitFor(() => others.every((events) => events.includes("three")), "the last message")
        for (const events of others) {
          assert.deepStrictEqual(
            events.filter((event) => event !== resynced),
            ["one", "two", "three"]
          )
        }
        // A later message of another sender comes after anything that went astray.
        yield* publish(b, "marker")
        yield* waitFor(() => own.every((events) => events.includes("marker")), "the marker")
        for (const events of own) {
          assert.deepStrictEqual(
            events.filter((event) => event !== resynced),
            ["marker"]
          )
        }
      }))

    test("is debounced by 1 second unless said otherwise: equal messages collapse, different ones all run", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const debounced = yield* receive(b, Changes)
        const direct = yield* receive(b, Direct)
        yield* introduce(a, [debounced], Changes)
        yield* introduce(a, [direct], Direct)
        for (const text of ["x", "x", "y", "x"]) {
          yield* publish(a, text, Changes)
          yield* publish(a, text, Direct)
        }
        yield* waitFor(() => direct.length === 4, "the messages without debounce")
        assert.deepStrictEqual(direct, ["x", "x", "y", "x"])
        yield* backend.advance("700 millis")
        assert.deepStrictEqual(debounced, [])
        yield* publish(a, "x", Changes)
        yield* backend.advance("600 millis")
        assert.deepStrictEqual(debounced, ["y"])
        yield* waitFor(() => debounced.length === 2, "the repeated message")
        yield* backend.advance("1500 millis")
        assert.deepStrictEqual(debounced, ["y", "x"])
      }))

    test("a steady stream of repeats still comes through every ten windows", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const Steady = SyncMessage.make("steady", Schema.String, { debounce: "400 millis" })
        const events = yield* receive(b, Steady)
        yield* introduce(a, [events], Steady)
        for (let i = 0; i < 50; i++) {
          yield* publish(a, "tick", Steady)
          yield* backend.advance("100 millis")
        }
        assert.strictEqual(count(events, "tick"), 1)
      }))

    test("each plugin has a channel of its own, with any characters in its name", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const names = ["a", "a:b", "a*", "*", "[ab]", "constructor", "__proto__", "é🙂"]
        const channels = names.map((name) => SyncMessage.make(name, Schema.String, { debounce: 0 }))
        const received = yield* Effect.forEach(channels, (channel) => receive(b, channel))
        for (const channel of channels) yield* publish(a, channel.channel, channel)
        yield* waitFor(() => received.every((events) => events.length === 2), "a message on every channel")
        assert.deepStrictEqual(
          received,
          names.map((name) => [resynced, name])
        )
      }))

    test("two apps share a broker unseen", (cluster) =>
      Effect.gen(function* () {
        const one = yield* cluster.instance({ app: "one" })
        const two = yield* cluster.instance({ app: "two" })
        const peer = yield* cluster.instance({ app: "two" })
        const stranger = yield* receive(two)
        yield* publish(one, "secret")
        yield* publish(peer, "marker")
        yield* waitFor(() => stranger.includes("marker"), "the app's own message")
        // Nor do announcements pass from one app to the other.
        yield* backend.advance("11 seconds")
        assert.deepStrictEqual(stranger, [resynced, "marker"])
      }))

    test("closing the scope ends it, and drops what is pending", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const scope = yield* Scope.make()
        const leaves = yield* receive(b, Changes).pipe(Scope.provide(scope))
        const stays = yield* receive(b, Changes)
        yield* introduce(a, [leaves, stays], Changes)
        yield* publish(a, "pending", Changes)
        yield* backend.advance("300 millis")
        yield* Scope.close(scope, Exit.void)
        yield* waitFor(() => stays.includes("pending"), "the other receiver's call")
        yield* b.disconnect
        yield* b.reconnect
        yield* waitFor(() => stays.includes(resynced), "the other receiver's resync")
        assert.deepStrictEqual(leaves, [])
      }))
  })
}
