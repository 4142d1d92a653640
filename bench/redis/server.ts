/** The server of these benchmarks: `REDIS_URL`, or a private one that dies with this process. */
import * as Effect from "effect/Effect"
import { sharedUrl } from "../../test/servers/RedisServer.ts"

export const url = (): Promise<string> => Effect.runPromise(sharedUrl)
