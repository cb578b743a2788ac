/**
 * CoS: exact, fast decoding with several language models at once.
 *
 * <p>An {@link io.cosrt.Engine} holds the loaded models, a {@link io.cosrt.Session} decodes one sequence with them, and a
 * {@link io.cosrt.TextStream} makes text of its tokens:
 *
 * <pre>{@code
 * try (Engine engine = Engine.open(Path.of("engine.json"));
 *      Session session = engine.newSession()) {
 *     session.prompt(engine.encode("Once upon a time", true));
 *     StepResult step;
 *     do {
 *         step = session.step();                       // step.tokens() are new
 *     } while (step.finish() == Finish.NONE);
 * }
 * }</pre>
 *
 * <p><b>Errors.</b> What the library refuses is a {@link io.cosrt.CosException} with a code and a message; a failed call
 * changes nothing. A call on what is closed is an {@link java.lang.IllegalStateException}.
 *
 * <p><b>Ownership.</b> Close what you make; order does not matter, for sessions and streams keep what they need. What
 * was forgotten is freed when the garbage collector finds it.
 *
 * <p><b>Threads.</b> Any number of threads may use an engine at once. A session or a stream of text is for one thread at a
 * time, any thread: a second one at the same moment gets {@link io.cosrt.ErrorCode#BUSY}. {@link io.cosrt.Session#cancel},
 * {@link io.cosrt.Session#stats} and every {@code close} may be called at any time.
 */
package io.cosrt;
