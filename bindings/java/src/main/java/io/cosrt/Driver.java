// A thread that decodes the requests of a server in common passes.

package io.cosrt;

import java.util.ArrayList;
import java.util.List;

/**
 * Decodes requests on a thread of its own, all of them in common passes. So passes wait for no thread of a server, and
 * {@link Strategy#AUTO} plans for all requests together. Other threads take what is to be sent when they come to it.
 *
 * <pre>{@code
 * DrivenRequest driven = driver.start(engine.newRequest(body, options));
 * Piece piece;
 * do {
 *     piece = driven.next(); // waits
 *     out.write(piece.text());
 * } while (piece.status().isOpen());
 * }</pre>
 *
 * <p>Any thread may use a driver at any time. Its thread keeps no process alive, but ends only when the driver is
 * closed.
 */
public final class Driver implements AutoCloseable {
    private final Thread thread = new Thread(this::run, "cosrt-driver");
    private final List<DrivenRequest> open = new ArrayList<>(); // this object guards it, and the next one
    private boolean isClosed;

    /** Starts the thread. */
    public Driver() {
        thread.setDaemon(true);
        thread.start();
    }

    /**
     * Begins to decode a request. It belongs to the driver then, which closes it when it has ended.
     *
     * @throws CosException          BUSY (another thread uses the request, which stays the caller's), POISONED
     * @throws IllegalStateException the driver is closed, or the request is, which stays the caller's
     */
    public synchronized DrivenRequest start(Request request) {
        if (isClosed) {
            throw new IllegalStateException("the driver is closed");
        }
        DrivenRequest driven = new DrivenRequest(request);
        open.add(driven);
        notifyAll();
        return driven;
    }

    /** Cancels the requests that are left, and waits until they have ended. Closing again does nothing. */
    @Override
    public void close() {
        synchronized (this) {
            isClosed = true;
            open.forEach(DrivenRequest::cancel);
            notifyAll();
        }
        boolean interrupted = false;
        while (thread.isAlive()) {
            try {
                thread.join();
            } catch (InterruptedException e) {
                interrupted = true; // waiting goes on, and the thread is interrupted again afterwards
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    private void run() {
        for (List<DrivenRequest> round = next(); !round.isEmpty(); round = next()) {
            try {
                List<RequestNews> news = Request.stepMany(round.stream().map(DrivenRequest::request).toList());
                for (int i = 0; i < round.size(); i++) {
                    round.get(i).tell(news.get(i));
                }
            } catch (Throwable e) { // such as no memory: those who wait must learn of it, and the thread lives on
                round.forEach(driven -> driven.fail(new IllegalStateException("the driver cannot step", e)));
            }
        }
    }

    /** Waits for requests that go on. Returns none once the driver is closed and all have ended. */
    private synchronized List<DrivenRequest> next() {
        open.removeIf(DrivenRequest::isEnded);
        while (open.isEmpty() && !isClosed) {
            try {
                wait();
            } catch (InterruptedException e) {
                // Nobody may end this thread but close().
            }
        }
        return List.copyOf(open);
    }
}
