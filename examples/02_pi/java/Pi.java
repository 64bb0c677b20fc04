import java.util.SplittableRandom;

/** Estimates pi: throws points at a square and counts those inside the quarter circle. */
public final class Pi {
    public static void main(String[] args) {
        long points = points(args);
        SplittableRandom random = new SplittableRandom();
        long inside = 0;
        for (long i = 0; i < points; i++) {
            double x = random.nextDouble();
            double y = random.nextDouble();
            if (x * x + y * y <= 1.0) {
                inside++;
            }
        }
        System.out.println(4.0 * inside / points);
    }

    private static long points(String[] args) {
        try {
            long points = args.length == 1 ? Long.parseLong(args[0]) : 0;
            if (points > 0) {
                return points;
            }
        } catch (NumberFormatException error) {
            // told below, with every other wrong argument
        }
        System.err.println("usage: java -jar pi.jar POINTS, where POINTS is a whole number above 0");
        System.exit(2);
        throw new AssertionError("unreachable");
    }
}
