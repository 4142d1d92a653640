/**
 * Tasks on Redis: each a field of one hash, as JSON; sorted sets by the order in
 * which they were stored, for all and for each status; and one by when they ended.
 *
 * An update is decided here and written by a script, if the task still is what was
 * decided on; otherwise it is decided again.
 */
import * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { RedisConnection } from "../../layers/redis/RedisConnection.ts"
import * as RedisScript from "../../layers/redis/RedisScript.ts"
import { Task, TaskStore } from "../../plugins/async-task-manager/index.ts"
import { Instance } from "../../services/Instance.ts"
import { failing } from "../../plugins/StoreError.ts"
import { prefix } from "./support.ts"

const Stored = Schema.fromJsonString(Schema.toCodecJson(Task.Task))
const decode = Schema.decodeUnknownEffect(Stored)
const encode = Schema.encodeEffect(Stored)

/** How many tasks one script forgets. */
const removedAtOnce = 500

// KEYS: tasks, count, all, of the status, ended. ARGV: id, task, when it ended or "".
const insertScript = RedisScript.make(`
local number = redis.call('INCR', KEYS[2])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[3], number, ARGV[1])
redis.call('ZADD', KEYS[4], number, ARGV[1])
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[5], ARGV[3], ARGV[1]) end
`)

// KEYS: tasks, all, of the old status, of the new one, ended. ARGV: id, task before, task after, when it ended or "".
const replaceScript = RedisScript.make(`
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[4], redis.call('ZSCORE', KEYS[2], ARGV[1]), ARGV[1])
if ARGV[4] == '' then redis.call('ZREM', KEYS[5], ARGV[1]) else redis.call('ZADD', KEYS[5], ARGV[4], ARGV[1]) end
return 1
`)

// KEYS: tasks, all or those of a status. ARGV: index of the last.
const listScript = RedisScript.make(
  `
local tasks = {}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1])) do tasks[#tasks + 1] = redis.call('HGET', KEYS[1], id) end
return tasks
`,
  { retry: true }
)

// KEYS: tasks, ended, all sorted sets that have ended tasks. ARGV: time, how many.
const removeScript = RedisScript.make(`
local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(ids) do
  redis.call('HDEL', KEYS[1], id)
  for i = 2, #KEYS do redis.call('ZREM', KEYS[i], id) end
end
return #ids
`)

export const layer: Layer.Layer<TaskStore.TaskStore, never, RedisConnection | Instance> = Layer.effect(
  TaskStore.TaskStore,
  Effect.gen(function* () {
    const redis = yield* RedisConnection
    const base = `${prefix((yield* Instance).app)}tasks`
    const count = `${base}:count`
    const all = `${base}:all`
    const ended = `${base}:ended`
    const ofStatus = (status: Task.TaskStatus) => `${base}:status:${status}`
    const store = failing("task")

    const endedAt = (task: Task.Task) =>
      Task.isEnded(task.status) && task.endedAt !== null ? task.endedAt.epochMilliseconds : ""

    const find = (id: string) => redis.send<string | null>("hget", [base, id], { retry: true })

    const update: TaskStore.TaskStore["Service"]["update"] = (id, from, change, attempts) =>
      Effect.gen(function* () {
        const before = yield* find(id)
        if (before === null) return Option.none()
        const task = yield* decode(before)
        if (!from.includes(task.status)) return Option.none()
        if (attempts !== undefined && task.attempts !== attempts) return Option.none()
        const changed = { ...task, ...change }
        const replaced = yield* redis.run<number>(
          replaceScript,
          [base, all, ofStatus(task.status), ofStatus(changed.status), ended],
          [id, before, yield* encode(changed), endedAt(changed)]
        )
        return replaced === 1 ? Option.some(changed) : yield* update(id, from, change, attempts)
      }).pipe(store)

    return TaskStore.TaskStore.of({
      transaction: identity,
      insert: (task) =>
        Effect.flatMap(encode(task), (text) =>
          redis.run<void>(
            insertScript,
            [base, count, all, ofStatus(task.status), ended],
            [task.id, text, endedAt(task)]
          )
        ).pipe(store),
      get: (id) =>
        Effect.flatMap(find(id), (text) => (text === null ? Effect.succeedNone : Effect.asSome(decode(text)))).pipe(
          store
        ),
      list: ({ limit = 100, status } = {}) =>
        limit <= 0
          ? Effect.succeed([])
          : redis
              .run<ReadonlyArray<string>>(
                listScript,
                [base, status === undefined ? all : ofStatus(status)],
                [limit - 1]
              )
              .pipe(
                Effect.flatMap((texts) => Effect.forEach(texts, (text) => decode(text))),
                store
              ),
      update,
      removeEndedBefore: (time) =>
        Effect.gen(function* () {
          const sets = [ended, all, ...Task.TaskStatus.literals.filter(Task.isEnded).map(ofStatus)]
          let removed = 0
          while (true) {
            const some = yield* redis.run<number>(
              removeScript,
              [base, ...sets],
              [time.epochMilliseconds, removedAtOnce]
            )
            removed += some
            if (some < removedAtOnce) return removed
          }
        }).pipe(store)
    })
  })
)
