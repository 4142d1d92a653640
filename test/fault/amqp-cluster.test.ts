/**
 * A cluster of three RabbitMQ nodes while the node is killed that an instance is connected to and that leads every queue and
 * stream, and then, when it is back, the node that leads by then.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Cache, Cohort, EventQueue, Job, Lock, PubSub, Topic } from "../../src/index.ts"
import * as RabbitCluster from "../servers/RabbitCluster.ts"
import type { RabbitServer } from "../servers/RabbitServer.ts"
import { waitUntil } from "../servers/ServerProcess.ts"

const Work = Job.make("work", Schema.String, { maxRetries: 20, timeout: "1 minute" })
const News = Topic.make("news", Schema.String)
/** For everything to go on: three operations that fail after their timeout, a lock's ttl, and a busy machine. */
const within = 60_000

const until = (what: string, condition: Effect.Effect<boolean>) =>
  Effect.promise(() =>
    waitUntil(
      () => Effect.runPromise(condition),
      () => `never: ${what}`,
      within
    )
  )

/** An instance that tries one of the nodes first, and then the others. */
const instance = (nodes: ReadonlyArray<RabbitServer>, first: number) =>
  Effect.gen(function* () {
    const addresses = [...nodes.slice(first), ...nodes.slice(0, first)].map(({ port }) => ({ host: "127.0.0.1", port }))
    const options = { app: "cluster", nodes: addresses, timeout: "5 seconds", heartbeat: "1 second" } as const
    const runtime = yield* Effect.acquireRelease(
      Effect.sync(() => ManagedRuntime.make(Layer.provideMerge(Cohort.layerAmqp(options), Logger.layer([])))),
      (runtime) => runtime.disposeEffect
    )
    const values = yield* Effect.promise(() => runtime.runPromise(Cache.make("values", Schema.String)))
    const ended = new Set<string>()
    const heard = new Set<string>()
    yield* Effect.acquireRelease(
      Effect.sync(() =>
        runtime.runFork(
          Effect.scoped(
            Effect.gen(function* () {
              yield* PubSub.subscribe(News, (text) => Effect.sync(() => void heard.add(text)))
              yield* EventQueue.subscribe(Work, {
                concurrency: 4,
                process: (id) =>
                  Effect.delay(
                    Effect.sync(() => void ended.add(id)),
                    "5 millis"
                  )
              })
              yield* Effect.never
            })
          )
        )
      ),
      (fiber) => Effect.sync(() => fiber.interruptUnsafe())
    )
    /** Again, until it succeeds. */
    const run = <A, E>(what: string, effect: Effect.Effect<A, E, Cohort.Services>) =>
      Effect.promise(() => runtime.runPromise(Effect.retry(effect, Schedule.spaced("100 millis")))).pipe(
        Effect.timeoutOrElse({ duration: within, orElse: () => Effect.die(new Error(`never: ${what}`)) })
      )
    return { ended, heard, run, values }
  })

describe("a cluster of RabbitMQ nodes", () => {
  it.live(
    "goes on without the node that leads: no job is lost, lock, cache and broadcast resume",
    () =>
      Effect.gen(function* () {
        const nodes = yield* RabbitCluster.make(3)
        const a = yield* instance(nodes, 0)
        const b = yield* instance(nodes, 1)
        const both = [a, b]
        const published: Array<string> = []
        const fences: Array<number> = []

        const publish = (from: typeof a, ids: ReadonlyArray<string>) =>
          Effect.forEach(ids, (id) =>
            Effect.map(from.run(`${id} published`, EventQueue.publish(Work, id)), () => published.push(id))
          )
        /** All that instances do. */
        const everything = (when: string) =>
          Effect.gen(function* () {
            const ids = (name: string) => Array.from({ length: 100 }, (_, i) => `${when} ${name} ${i}`)
            const lock = Lock.runExclusive("key", ({ fence }) => Effect.sync(() => void fences.push(fence)), {
              ttl: "5 seconds"
            })
            yield* Effect.all(
              [
                publish(a, ids("a")),
                publish(b, ids("b")),
                a.run("a value set", a.values.set("key", when)),
                ...both.map(({ run }) => run("a lock granted", lock))
              ],
              { concurrency: "unbounded" }
            )
            for (const { run, values } of both) {
              const get = Effect.map(run("a value read", values.get("key")), (value) => Option.contains(value, when))
              yield* until(`the value of ${when}`, get)
              for (const { heard } of both) heard.clear()
              const news = Effect.map(run("news", PubSub.publish(News, when, { skipSelf: false })), () =>
                both.every(({ heard }) => heard.has(when))
              )
              yield* until(`news of ${when}`, news)
            }
            yield* until(
              `the jobs of ${when}`,
              Effect.sync(() => published.every((id) => both.some(({ ended }) => ended.has(id))))
            )
            const depth = yield* b.run("depth", EventQueue.depth(Work))
            assert.deepStrictEqual(depth, { ready: 0, delayed: 0, inFlight: 0, dead: 0 })
          })

        /** Of the queues and streams that are on several nodes, by name. */
        const replicated = (node: RabbitServer) =>
          Effect.map(node.control("list_queues", "name", "leader", "members"), (text) =>
            text
              .split("\n")
              .filter((line) => line.startsWith("cohort."))
              .map((line) => line.split("\t"))
          )
        const leads = (name: string, queues: ReadonlyArray<ReadonlyArray<string>>) =>
          queues.find(([queue]) => queue!.startsWith(name))![1]

        yield* everything("before")
        const queues = yield* replicated(nodes[2]!)
        assert.deepStrictEqual(queues.map(([name]) => name!.split(".v1.")[0]).sort(), [
          "cohort.dead",
          "cohort.delays",
          "cohort.jobs",
          "cohort.log"
        ])
        for (const [name, leader, members] of queues) {
          assert.strictEqual(leader, nodes[0]!.node, `${name} is led where it was declared`)
          for (const { node } of nodes) assert.include(members, node)
        }

        yield* nodes[0]!.kill
        yield* everything("without the first")
        yield* nodes[0]!.start

        const leader = leads("cohort.jobs", yield* replicated(nodes[0]!))
        yield* nodes.find(({ node }) => node === leader)!.kill
        yield* everything("without the next")

        assert.deepStrictEqual(
          fences,
          [...new Set(fences)].sort((a, b) => a - b)
        )
      }),
    300_000
  )
})
