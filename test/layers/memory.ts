/** The memory backend, for the contract suites. */
import { onMemory } from "../../src/testing/contracts/Backend.ts"

export const memory = onMemory({ name: "memory" })
